"""The black-box models of arXiv 2309.17002 (section 5), as specifications of --encoder."""

from __future__ import annotations

PAPER_MODELS = {
    "ResNet152x2 (BiT)": "timm:resnetv2_152x2_bit.goog_in21k",
    "Swin-L (IN-21K)": "timm:swin_large_patch4_window7_224.ms_in22k",
    "EfficientNet-B3 (noisy student)": "timm:tf_efficientnet_b3.ns_jft_in1k",
    "ViT-L (LAION-2B)": "open_clip:ViT-L-14/laion2b_s32b_b82k",
    "ConvNeXt-L (LAION-2B)": "open_clip:convnext_large_d_320/laion2b_s29b_b131k_ft_soup",
    "BERT-L": "transformers:google-bert/bert-large-uncased",
    "RoBERTa-L": "transformers:FacebookAI/roberta-large",
    "GPT-2": "transformers:openai-community/gpt2,pooling=last",
    "text-ada-002 (closed; its successor)": "api:text-embedding-3-small",
}
