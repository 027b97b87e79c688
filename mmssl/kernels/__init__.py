"""Fast inner loops, most of them compiled for the CPU by numba on first use."""

SENTENCE_END = -1  # separates sentences in an array of word ids
