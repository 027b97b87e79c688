"""Registers the architectures that transformers lacks, so that Auto classes load them without remote code."""

import transformers

from mmssl.models.char_rnn import CharRNNConfig, CharRNNForCausalLM, CharRNNModel
from mmssl.models.cpc_audio import CpcAudioConfig, CpcAudioForAudioClassification, CpcAudioModel
from mmssl.models.cpc_text import CpcTextConfig, CpcTextModel
from mmssl.models.diffusion_encoder import DiffusionEncoderConfig, DiffusionEncoderModel
from mmssl.models.linear_image import LinearImageConfig, LinearImageModel
from mmssl.models.patch_encoder import PatchEncoderConfig, PatchEncoderForImageClassification, PatchEncoderModel
from mmssl.models.video_lstm import VideoLSTMConfig, VideoLSTMModel
from mmssl.models.word2vec import Word2VecConfig, Word2VecModel

ARCHITECTURES = {  # config: {Auto class: model}; all classes of one are in one file, which is copied into exports
    CharRNNConfig: {"AutoModel": CharRNNModel, "AutoModelForCausalLM": CharRNNForCausalLM},
    CpcAudioConfig: {"AutoModel": CpcAudioModel, "AutoModelForAudioClassification": CpcAudioForAudioClassification},
    CpcTextConfig: {"AutoModel": CpcTextModel},
    DiffusionEncoderConfig: {"AutoModel": DiffusionEncoderModel},
    LinearImageConfig: {"AutoModel": LinearImageModel},
    PatchEncoderConfig: {
        "AutoModel": PatchEncoderModel,
        "AutoModelForImageClassification": PatchEncoderForImageClassification,
    },
    VideoLSTMConfig: {"AutoModel": VideoLSTMModel},
    Word2VecConfig: {"AutoModel": Word2VecModel},
}

for config, classes in ARCHITECTURES.items():
    transformers.AutoConfig.register(config.model_type, config)
    for auto_class, model in classes.items():
        getattr(transformers, auto_class).register(config, model)
