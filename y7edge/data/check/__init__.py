"""Find all problems of a data set; training stops at the first problem that it refuses.

The parsers (`y7edge.data.formats`) record problems, `decoding` decodes each image once, and the
checks (`registry`) find labels, images and splits that look wrong. `fix` writes a cleaned copy.
"""
