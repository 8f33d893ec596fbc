"""Training of the networks: the paper's recipe, sets of images, the loop, and its files.

Importing it imports none of its modules: `recipe` needs nothing but torch, `data` Pillow.
"""
