"""`grid_reduction`: one folder, the rooms every op has."""
