"""`conv2d_act`: one folder, the rooms every op has."""
