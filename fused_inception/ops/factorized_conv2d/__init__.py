"""`factorized_conv2d`: one folder, the rooms every op has."""
