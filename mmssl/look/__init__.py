"""A local page to look into finished runs: search, zero-shot labels, reconstructions, words, sounds, loss curves.

python -m mmssl.look runs/clip
"""
