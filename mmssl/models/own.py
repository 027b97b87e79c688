"""Registers the architectures that transformers lacks, so that Auto classes load them without remote code."""

from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, AutoModelForCausalLM

from mmssl.models.char_rnn import CharRNNConfig, CharRNNForCausalLM, CharRNNModel
from mmssl.models.cpc_audio import CpcAudioConfig, CpcAudioForAudioClassification, CpcAudioModel
from mmssl.models.cpc_text import CpcTextConfig, CpcTextModel
from mmssl.models.diffusion_encoder import DiffusionEncoderConfig, DiffusionEncoderModel
from mmssl.models.linear_image import LinearImageConfig, LinearImageModel
from mmssl.models.video_lstm import VideoLSTMConfig, VideoLSTMModel
from mmssl.models.word2vec import Word2VecConfig, Word2VecModel

AutoConfig.register(CharRNNConfig.model_type, CharRNNConfig)
AutoModel.register(CharRNNConfig, CharRNNModel)
AutoModelForCausalLM.register(CharRNNConfig, CharRNNForCausalLM)

AutoConfig.register(CpcAudioConfig.model_type, CpcAudioConfig)
AutoModel.register(CpcAudioConfig, CpcAudioModel)
AutoModelForAudioClassification.register(CpcAudioConfig, CpcAudioForAudioClassification)

AutoConfig.register(CpcTextConfig.model_type, CpcTextConfig)
AutoModel.register(CpcTextConfig, CpcTextModel)

AutoConfig.register(DiffusionEncoderConfig.model_type, DiffusionEncoderConfig)
AutoModel.register(DiffusionEncoderConfig, DiffusionEncoderModel)

AutoConfig.register(LinearImageConfig.model_type, LinearImageConfig)
AutoModel.register(LinearImageConfig, LinearImageModel)

AutoConfig.register(VideoLSTMConfig.model_type, VideoLSTMConfig)
AutoModel.register(VideoLSTMConfig, VideoLSTMModel)

AutoConfig.register(Word2VecConfig.model_type, Word2VecConfig)
AutoModel.register(Word2VecConfig, Word2VecModel)
