"""What training aims at: each file of this folder is an objective, which is found by its name, but `base`, and
`answers`, which those of whole answers share.
"""
