"""The objectives of training. Each file of this folder is one, found by its name, except `base`, and `answers`, which
objectives of whole answers share.
"""
