"""What is wrong with a data set: everything at once, where the readers stop at the first error.

A lenient scanner per format gives raw records (`records`), pictures are decoded once (`pictures`),
and independent checks (`registry`) turn both into findings. `mend` writes a cleaned copy.
"""
