"""Tiny models of transformers' architectures, from configurations: shrunk by the names of entries, fed by signature."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from attntut import _huggingface as huggingface
from attntut._restore import tensors_in
from attntut.device import seeded

LARGEST = 90e6  # parameters of what is still called tiny
BATCH, TOKENS = 2, 12
LAYERS = (
    r"(?!.*(feat_extract|conv|shared|window|nextn|deform))"
    r"(.*num_.*layers|n_layers?|(en|de)coder_layers|depth|layers|[lxr]_layers)"
)
PICTURES = {r"(pretrain_)?(image|img)_size": 64, r"patch_size": 8}
# The largest value of an entry; the first pattern that matches its whole name counts.
ALWAYS = {
    r".*image_token_(id|index)": 9,
    r".*video_token_(id|index)": 8,
    r".*audio_token_(id|index)": 7,
    r"(pad|bos|eos|sep|cls|mask|unk|decoder_start)_token_id": 5,
    r".*vocab_size": 97,
    r"codebook_size|max_(source|target)_positions": 64,
    r"(original_)?max_(position_embeddings|sequence_length)|n_positions|n_ctx": 128,
    r"(num|n)_(local_|routed_)?experts|moe_num(_primary)?_experts|num_moe_experts": 4,
    r".*num_experts_per_.*|moe_?(top)?_?k|moe_topk|top_k_experts": 2,
    r"n_group|topk_group|num_expert_group": 1,
    r"sliding_window|attention_window|attention_chunk_size": 8,
    r"first_k_dense_replace": 1,
    r"num_kv_shared_layers": 0,
    r"num_queries": 20,
}
STRONGLY = {
    r"mamba_(n|num)_heads": 8,
    r"mamba_d_ssm": 128,
    r"mamba_(d_head|head_dim|d_state)": 16,
    r"linear_num_.*heads?|index_n_heads": 4,
    r".*(key_value|kv)_heads|multi_query_group_num": 2,
    r"(?!.*loss).*(attention_heads|num_heads?|n_heads?|nhead)": 4,
    r"(qk_nope|qk_rope)_head_dim|rotary_dim": 8,
    r".*head_dim|d_kv|d_head|kv_channels|dim_head|attention_head_size": 16,
    r".*lora_rank": 32,
    r".*(intermediate|ffn|mlp).*(size|dim)|d_ff|n_inner|d_inner|dim_feedforward|ffn_.*size|ff_dim|linear_units": 128,
    r"(?!.*(vector|patch|position)).*(hidden|embed|model|emb|out)_(size|dim)|d_model|n_embd|embed_dim"
    r"|.*embedding_(size|dim)|((text|vision|audio)_)?(projection|proj|hidden|output)_dim|dim|.*(width|embed_proj_dim)"
    r"|hidden_size_per_layer_input|kv_dim": 64,
}
DERIVED = "id2label label2id dtype transformers_version out_indices out_features stage_names per_layer_config".split()
LAST_LAYER = ("deepstack_visual_indexes", "fullatt_block_indexes", "global_attn_indexes", "attn_layer_indices")
RESNET = {  # instead of a backbone of timm
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
# What shrinking by names does not get right.
EXTRAS = (
    ("image tokens", "pixel_values", "image_grid_thw"),
    ("image tokens", "pixel_values"),
    ("pixel_values", "bbox"),
    (),
    ("channels first",),
)
MROPE = {"rope_parameters": {"mrope_section": [2, 3, 3]}}
SMALL_MROPE = {"rope_parameters": {"mrope_section": [1, 1, 2]}}
SERIES = {"prediction_length": 4, "context_length": 8}
ADAPTED: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), SERIES),
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "rope_theta": 1e4}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [1, 1], "block_repeats": [1, 1]},
    "glm4v_moe_text": SMALL_MROPE,
    "glm4v_moe": {"text_config": SMALL_MROPE},
    **dict.fromkeys(("glm4v_text", "glm_image_text", "qwen2_vl_text", "qwen2_5_vl_text"), MROPE),
    **{kind: {"text_config": MROPE} for kind in "glm46v glm4v glm_image glm_ocr glmga qwen2_vl qwen2_5_vl".split()},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "perceiver": {"num_latents": 8, "d_latents": 64, "num_self_attends_per_block": 2},
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [4, 8]},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip


def models(kind: str, implementation: str) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Ways to build a type of model and its inputs, best first: strongly shrunk, with all inputs that it takes.

    Args:
        kind: a key of transformers' ``MODEL_MAPPING``.
        implementation: ``"eager"`` or ``"sdpa"``.

    Yields:
        A model in evaluation mode, and inputs that it may or may not take.

    Raises:
        Exception: the first that came in the way, after the last way.
    """
    plain = huggingface.configuration(kind, {}).to_dict()
    del plain["model_type"]
    failed: Exception | None = None
    most, all_of = ALWAYS | PICTURES, STRONGLY | ALWAYS | PICTURES
    for limits, fill in ((all_of, False), (all_of, True), (most, False), (ALWAYS, False)):
        entries = shrink(plain, limits, fill=fill)
        _update(entries, ADAPTED.get(kind, {}))
        try:
            model = build(kind, entries, implementation)
        except Exception as error:
            failed = failed or error
            continue
        for extras in EXTRAS:
            try:
                yield model, inputs_of(model, extras)
            except Exception as error:
                failed = failed or error
    if failed:
        raise failed


def build(kind: str, entries: dict[str, Any], implementation: str, largest: float = LARGEST) -> nn.Module:
    """A model from the entries of its configuration, of so many parameters at most."""
    from transformers import CONFIG_MAPPING, AutoModel

    with torch.device("meta"):
        size = sum(each.numel() for each in AutoModel.from_config(CONFIG_MAPPING[kind](**entries)).parameters())
    if size > largest:
        raise ValueError(f"still {size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(CONFIG_MAPPING[kind](**entries), attn_implementation=implementation)
    return model.eval().float()


def shrink(entries: dict[str, Any], limits: dict[str, int], *, fill: bool = False) -> dict[str, Any]:
    """Cut the numbers of a configuration, and with the number of layers each list that has an element per layer.

    Args:
        entries: of the configuration.
        limits: pattern of names to the largest value.
        fill: whether an entry that is None becomes its limit.

    >>> shrink({"n_layers": 4, "types": ["a", "a", "a", "b"], "width": 768}, {"width": 64})
    {'n_layers': 2, 'types': ['a', 'b'], 'width': 64}
    """
    small = {str(key): value for key, value in entries.items() if key not in DERIVED}
    if "qk_rope_head_dim" in small:
        small.pop("head_dim", None)
    for key, value in list(small.items()):
        if isinstance(value, int) and value > 2 and re.fullmatch(LAYERS, key):
            lists = {name: each for name, each in small.items() if isinstance(each, list) and len(each) == value}
            first = {str([each[i] for each in lists.values()]): i for i in reversed(range(value))}
            kept = sorted(first.values())[:4] if len(first) > 1 else [0, 1]  # one layer of each kind, and at least two
            small |= {name: [each[i] for i in kept] for name, each in lists.items()} | {key: len(kept)}
    for key, value in small.items():
        if isinstance(value, dict):
            small[key] = RESNET if value.get("model_type") == "timm_backbone" else shrink(value, limits, fill=fill)
        elif key in LAST_LAYER:
            small[key] = [1]
        elif key == "depths":
            small[key] = [min(each, 2) for each in value]
        elif key == "mrope_section":
            small[key] = MROPE["rope_parameters"][key]
        elif (type(value) is int) or (value is None and fill):
            limit = next((limit for name, limit in limits.items() if re.fullmatch(name, key)), None)
            small[key] = min((each for each in (value, limit) if each is not None), default=None)
    for key in ("num_key_value_heads", "n_kv_heads"):
        if key in small and entries[key] == entries.get("num_attention_heads"):
            small[key] = small["num_attention_heads"]
    return small


def inputs_of(model: nn.Module, extras: Sequence[str]) -> dict[str, Any]:
    """Random inputs by the names of the arguments of ``forward``.

    Args:
        model: of transformers.
        extras: arguments that may be left out, but shall be given where a model of text has them; ``"image tokens"``:
            the text has as many as the image has features; ``"channels first"``: sounds are ``(bins, time)``.
    """
    config: Any = model.config
    takes = inspect.signature(model.forward).parameters
    draw = seeded(1)

    def first(parts: str, *keys: str, otherwise: Any = None) -> Any:
        places = (*(getattr(config, part, None) for part in parts.split()), config)
        return next((v for place in places for key in keys if (v := getattr(place, key, None)) is not None), otherwise)

    def normal(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=draw)

    def words(length: int) -> Tensor:
        size, end, padding = (first("text_config", key) for key in ("vocab_size", "eos_token_id", "pad_token_id"))
        size = size if isinstance(size, int) else 97
        ids = torch.randint(min(10, size // 2), size, (BATCH, length), generator=draw)
        if isinstance(end, int) and 0 <= end < size and end != padding:
            ids[:, -1] = end  # what CLIP pools
        return ids

    channels = first("vision_config", "num_channels", "in_channels", "in_chans", otherwise=3)

    def image() -> Tensor:
        size = first("vision_config", "image_size", "img_size", "pretrain_image_size", otherwise=64)
        size = [*size.values()] if isinstance(size, dict) else size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return normal(channels if isinstance(channels, int) else 3, height, width)

    def patches() -> Tensor:
        side, deep = (first("vision_config", key, otherwise=1) for key in ("patch_size", "temporal_patch_size"))
        return normal(16, channels * deep * side**2).flatten(0, 1)

    def pixels() -> Tensor:
        frames = first("vision_config", "num_frames", "frames_per_clip", otherwise=2 * ("pixel_values_videos" in takes))
        return torch.stack([image() for _ in range(frames)], 1) if frames else image()

    def features() -> Tensor:
        names = "feature_projection_input_dim", "num_mel_bins", "feature_size"
        bins = first("audio_config encoder_config", *names, otherwise=80)
        length = 2 * first("audio_config", "max_source_positions", otherwise=32)
        return normal(bins, length) if "channels first" in extras else normal(length, bins)

    def sound() -> Tensor:
        if hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):
            return normal(config.max_length, config.num_mel_bins)
        return normal(*[1] * hasattr(config, "audio_channels"), 4000)

    def boxes() -> Tensor:
        corner = torch.randint(0, 50, (BATCH, TOKENS, 2), generator=draw)
        return torch.cat([corner, corner + 5], -1)

    width = first("text_config", "hidden_size", "d_model", otherwise=64)
    past, future, times = (getattr(config, key, 0) for key in (*reversed(SERIES), "num_time_features"))
    past += max(getattr(config, "lags_sequence", None) or [0])
    series = [config.num_input_channels] if hasattr(config, "num_input_channels") else []
    makers: dict[str, Callable[[], Tensor]] = {
        "input_ids": lambda: words(TOKENS),
        "decoder_input_ids": lambda: words(TOKENS - 3),
        "attention_mask": lambda: torch.ones(BATCH, TOKENS, dtype=torch.long),
        "bbox": boxes,
        "pixel_values": patches if "grid_thw" in takes or "image_grid_thw" in extras else pixels,
        "pixel_values_videos": pixels,
        **dict.fromkeys(("grid_thw", "image_grid_thw"), lambda: torch.tensor([[1, 4, 4]] * BATCH)),
        "input_features": features,
        "input_values": sound,
        "past_values": lambda: normal(past, *series),
        "past_time_features": lambda: normal(past, times),
        "past_observed_mask": lambda: torch.ones(BATCH, past),
        "future_values": lambda: normal(future),
        "future_time_features": lambda: normal(future, times),
        "hidden_states": patches if "grid_thw" in takes else lambda: normal(TOKENS, width),
        **dict.fromkeys(("inputs_embeds", "inputs"), lambda: normal(TOKENS, width)),
    }
    names = [getattr(model, "main_input_name", "input_ids")]
    names += [name for name, each in takes.items() if each.default is each.empty and each.kind not in (2, 4)]
    names += ["decoder_input_ids"] * getattr(config, "is_encoder_decoder", False)
    names += ["future_values", "future_time_features"] * ("past_time_features" in names)
    names += [*extras] * ("input_ids" in names)
    names = [name for name in dict.fromkeys(names) if name in takes]
    if missing := [name for name in names if name not in makers]:
        raise ValueError(f"nothing here makes the input {missing[0]!r}")
    inputs: dict[str, Any] = {name: makers[name]() for name in names}
    if "image tokens" in extras:
        token = first("", "image_token_id", "image_token_index")
        with torch.no_grad():
            images = {name: each for name, each in inputs.items() if name in extras}
            seen = model.get_image_features(**images)  # type: ignore[operator]
        count = sum(each[..., 0].numel() for each in tensors_in(getattr(seen, "pooler_output", seen))) // BATCH
        inputs["input_ids"] = torch.cat([torch.full((BATCH, count), token), inputs["input_ids"]], 1)
        if "mm_token_type_ids" in takes:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == token).long()
    return inputs | ({"use_cache": False} if "use_cache" in takes else {})


def with_towers(model: nn.Module, inputs: dict[str, Any]) -> Callable[[nn.Module], Any]:
    """What calls a model, and each model inside it that its inputs did not reach (a tower for images) on its own."""
    from transformers import PreTrainedModel

    reached, towers = _called(model, model, inputs), dict[str, dict[str, Any]]()
    for name, tower in model.named_modules():
        if isinstance(tower, PreTrainedModel) and name not in reached:
            for extras in EXTRAS:
                with suppress(Exception):
                    mine = inputs_of(tower, extras)
                    reached |= _called(model, tower, mine)
                    towers[name] = mine
                    break
    return lambda model: (model(**inputs), [model.get_submodule(name)(**each) for name, each in towers.items()])


def _called(model: nn.Module, part: nn.Module, inputs: dict[str, Any]) -> set[str]:
    """The modules of a model that run while a part of it does."""
    called: set[str] = set()
    handles = [
        each.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, each in model.named_modules()
    ]
    try:
        with torch.no_grad():
            part(**inputs)
    finally:
        for each in handles:
            each.remove()
    return called


def _update(entries: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(entries.get(key), dict):
            _update(entries[key], value)
        else:
            entries[key] = value
