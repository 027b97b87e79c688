"""mmssl: self-supervised pretraining for text, images, audio and image-text pairs, in one Accelerate loop."""

__version__ = "0.1.0"
