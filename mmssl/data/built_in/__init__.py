"""Data without a download, made on first use: how each is built, and its licence."""

from mmssl.data.built_in import digits, emoji, voices, wikipedia

BUILT_IN = {
    "digits": digits.build_digits,
    "emoji": emoji.build,
    "mnist5k": digits.build_mnist,
    "voices": voices.build,
    "wikipedia": wikipedia.build,
}
LABELLED = ("digits", "mnist5k", "voices")  # with labels, for evaluation
LICENCES = {**digits.LICENCE, "emoji": emoji.LICENCE, "voices": voices.LICENCE, "wikipedia": wikipedia.LICENCE}
