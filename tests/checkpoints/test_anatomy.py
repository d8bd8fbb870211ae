"""Which parameters are the text model's: names as released models of many families store them."""
# ruff: noqa: E501

import pytest

from jaxgeom.checkpoints.anatomy import places_of

_LAYER = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")


def text(stem, layers="layers", embedding="embed_tokens", norm="norm", head="lm_head", above=""):
    names = [f"{stem}{embedding}.weight", f"{stem}{norm}.weight", f"{above}{head}.weight"]
    return names + [f"{stem}{layers}.{i}.{one}" for i in range(2) for one in _LAYER]


def stack(stem, count=4):
    return [f"{stem}.{i}.{one}" for i in range(count) for one in _LAYER]


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (text("llm.model.", above="llm."), {  # MiniCPM-o
            "vpm": ["vpm.embeddings.patch_embedding.weight", *stack("vpm.encoder.layers")],
            "apm": ["apm.conv1.weight", "apm.embed_positions.weight", *stack("apm.layers")],
            "resampler": ["resampler.attn.in_proj_weight", "resampler.query"],
            "tts": ["tts.emb_text.weight", *stack("tts.model.layers")],
        }),
        (text("model.language_model.model.decoder.", norm="final_layer_norm", above="model.language_model."), {  # BLIP-2
            "qformer": ["model.qformer.layernorm.weight", *stack("model.qformer.encoder.layer")],
            "vision_model": ["model.vision_model.embeddings.class_embedding", *stack("model.vision_model.encoder.layers")],
            "language_projection": ["model.language_projection.weight"], "query_tokens": ["model.query_tokens"],
        }),
        (text("language_model.model.", above="language_model."), {  # Janus
            "gen_vision_model": ["gen_vision_model.quantize.embedding.weight", *stack("gen_vision_model.encoder.down")],
            "gen_aligner": ["gen_aligner.layers.0.weight"], "gen_embed": ["gen_embed.weight"],
            "aligner": ["aligner.layers.0.weight", "aligner.layers.2.weight"],
        }),
        (text("model.language_model.") + ["model.language_model.embed_tokens_per_layer.weight"], {  # Gemma 3n
            "embed_vision": ["model.embed_vision.embedding.weight", "model.embed_vision.soft_embedding_norm.weight"],
            "embed_audio": ["model.embed_audio.embedding_projection.weight"],
            "vision_tower": stack("model.vision_tower.timm_model.blocks.0"),
            "audio_tower": stack("model.audio_tower.conformer"),
        }),
        (text("model."), {  # LLaVA, Chameleon, classifiers, value heads, draft heads
            "mm_projector": ["model.mm_projector.0.weight", "model.mm_projector.2.weight"],
            "vision_tower": stack("model.vision_tower.vision_tower.vision_model.encoder.layers", 30),
            "vqmodel": ["model.vqmodel.quantize.embedding.weight", "model.vqmodel.conv_out.weight"],
            "score": ["score.weight"], "v_head": ["v_head.summary.weight"], "medusa_heads": ["medusa_heads.0.1.weight"],
            "eh_proj": ["eh_proj.weight"],
        }),
        (text("language_model.model.", embedding="tok_embeddings", head="output", above="language_model."), {  # InternVL
            "mlp1": ["mlp1.0.weight", "mlp1.1.weight"],
            "vision_model": ["vision_model.embeddings.position_embedding", *stack("vision_model.encoder.layers")],
        }),
        (text("thinker.model.", above="thinker.") + stack("thinker.model.layers", 9), {  # Qwen2.5-Omni
            "visual": stack("thinker.visual.blocks"), "talker": text("talker.model.", above="talker."),
            "token2wav": stack("token2wav.transformer_blocks"),
        }),
        (text("model.") + stack("model.layers", 4), {  # DeepSeek's layer for a further token
            "layers.4": ["model.layers.4.eh_proj.weight", "model.layers.4.self_attn.q_proj.weight",
                         "model.layers.4.embed_tokens.weight", "model.layers.4.shared_head.norm.weight"],
        }),
        (text("model.decoder.", norm="layer_norm"), {"encoder": ["model.encoder.conv1.weight", *stack("model.encoder.layers")]}),
        (text("transformer.", layers="h", embedding="wte", norm="ln_f") + ["transformer.wpe.weight"], {}),
        (text("gpt_neox.", embedding="embed_in", norm="final_layer_norm", head="embed_out"), {}),
        (text("transformer.", "encoder.layers", "embedding.word_embeddings", "encoder.final_layernorm", "output_layer",
              above="transformer."), {}),
        (text("", "encoder.layer", "embeddings.word_embeddings", "embeddings.LayerNorm"), {"pooler": ["pooler.dense.weight"]}),
        (text("") , {"visual": stack("visual.blocks", 9)}),
        (["anything.else", "other"], {}),
    ],
)  # fmt: skip
def test_the_text_model_is_what_shares_its_stem(names, others):
    beside = [(name, tower) for tower, held in others.items() for name in held]
    want = {**dict.fromkeys(names), **dict(beside)}
    found = places_of({name: 100 if want[name] is None else 90 for name in want})
    assert {name: place.tower for name, place in found.items()} == want


@pytest.mark.parametrize(
    "stem", ["", "model.", "llm.", "thinker.model.", "model.text_model.", "policy.model.", "actor_module.", "transformer.",
             "_orig_mod.model.", "model._fsdp_wrapped_module."],
)  # fmt: skip
def test_keys_do_not_depend_on_what_stands_before(stem):
    above = ".".join(stem.split(".")[:-2]) + "." if stem.count(".") > 1 else ""
    names = [*text(stem, above=above), "visual.blocks.0.mlp.up_proj.weight"]
    keys = sorted(place.key for place in places_of(dict.fromkeys(names, 1)).values())
    assert keys == sorted([*text(""), "visual.blocks.0.mlp.up_proj.weight"])


def test_mixtrals_experts_have_the_usual_words():
    names = {"model.embed_tokens.weight": 1, "model.layers.0.block_sparse_moe.gate.weight": 1}
    names |= {f"model.layers.0.block_sparse_moe.experts.3.w{n}.weight": 1 for n in (1, 2, 3)}
    keys = [place.key for place in places_of(names).values()]
    assert keys[1:] == ["layers.0.mlp.gate.weight"] + [
        f"layers.0.mlp.experts.3.{word}_proj.weight" for word in ("gate", "down", "up")
    ]
