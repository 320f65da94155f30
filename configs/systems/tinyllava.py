"""TinyLLaVA: a tower, a language model of 1 to 3 billion parameters and one of two recipes, each chosen by itself.

    python -m vlm_jax.main --config=configs/systems/tinyllava.py:phi,siglip,share --workdir=runs/tinyllava \\
        --config.start.vision=siglip-so400m-patch14-384 --config.start.decoder=phi-2 --config.data.train=META.json
    python -m vlm_jax.main --config=configs/systems/tinyllava.py:tiny --workdir=runs/tinyllava-tiny

`base` is LLaVA-1.5's two stages. `share` has one between them, in which the connector, the language model and the
tower from layer 12 on learn from long captions. An image is stretched to SigLIP's square; of CLIP's the middle is seen.

Numbers: arXiv:2402.14289, which trains the tower where the scripts freeze it; `scripts/train/` of TinyLLaVA_Factory,
except for its 3,072 tokens with Phi-2, whose context is 2,048. META.json is InternVL's kind of meta file with the
sources `pretrain` (558K captions), `captions` (ShareGPT4V-PT; `share` alone) and `instruct` (a mix of 665K).
"""

from vlm_jax.models.sizes import DECODERS, TOWERS
from vlm_jax.training.systems import TINY, llava_stage, row_of, system_recipe

ARGUMENTS = {
    "tinyllama,clip,base": ("TinyLlama-1.1B, CLIP-L/14", "published for 4 GPUs, not timed here"),
    "stablelm,siglip,share": ("StableLM-2-1.6B, SigLIP, three stages", "published for 4 GPUs, not timed here"),
    "gemma,siglip,base": ("Gemma-2B, SigLIP", "published for 4 GPUs, not timed here"),
    "phi,siglip,share": ("Phi-2, SigLIP, three stages", "published for 4 GPUs, not timed here"),
    "tiny": ("those of phi,siglip,share, small, on the pocket data; for tests", "1 minute on two CPU cores"),
}
SYSTEM = {
    "number": 24,
    "name": "TinyLLaVA",
    "oracle": "towers and decoders against their classes in `transformers`, composed",
    "parameters": {"tinyllama,clip,base": 1_410_113_536, "stablelm,siglip,share": 2_064_060_272,
                   "gemma,siglip,base": 2_925_848_432, "phi,siglip,share": 3_202_178_928},
    "counted": "releases of the parts, words of TinyLlama and Gemma filled up by 64",
    "missing": "Q-Former and resampler as connectors, towers of two encoders (MoF), OpenELM",
}  # fmt: skip
DECODER = {  # the release, its words, prompt formats of a conversation and of a caption
    "tinyllama": ("tinyllama_1_1b", 32064, "vicuna_v1", "plain"),
    "stablelm": ("stablelm_2_1_6b", 100352, "phi", "plain_bare"),
    "gemma": ("gemma_2b", 256064, "gemma", "plain_gemma"),
    "phi": ("phi_2", 51200, "phi", "plain_bare"),
}
TOWER = {"clip": ("clip_l14_336", 336, "crop"), "siglip": ("siglip_so400m_384", 384, "stretch")}
PARTS = {**{arg: arg.split(",") for arg in ARGUMENTS}, TINY: ["phi", "siglip", "share"]}


def get_config(arg: str = "phi,siglip,share"):
    name, tower, recipe = row_of(PARTS, arg, __file__)
    (decoder, words, template, captions), (vision, side, fit) = DECODER[name], TOWER[tower]
    share = dict(rows=256, learning_rate=2e-5, template=captions, tune_from_layer=dict(vision=12))
    between = {"base": [], "share": [llava_stage("share", ["**"], dict(captions=1.0), **share)]}
    align = dict(rows=256, learning_rate=1e-3, template=captions)
    tune = dict(rows=128, learning_rate=2e-5, data=dict(order="group"))
    align = llava_stage("align", ["connector/**"], dict(pretrain=1.0), **align)
    tune = llava_stage("tune", ["connector/**", "decoder/**"], dict(instruct=1.0), **tune)
    model = dict(vision=dict(TOWERS[vision], feature_layer=-2), connector=dict(type="mlp", depth=2),
                 decoder=dict(DECODERS[decoder], vocab_size=words))  # fmt: skip
    layout = dict(type="single", tile_size=side, fit=fit)
    stages = [align, *between[recipe], tune]
    return system_recipe(arg, name="tinyllava", **model, layout=layout, template=template, stages=stages)
