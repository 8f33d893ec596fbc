"""`pool2d`: the pools around the convolutions; one folder, the rooms every op has."""
