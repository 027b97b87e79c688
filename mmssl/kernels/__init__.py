"""Fast arithmetic, most of it compiled for the CPU by numba when it is first needed."""

SENTENCE_END = -1  # between the sentences of a row of word numbers
