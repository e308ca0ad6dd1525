from pathlib import Path

import pytest
from checkpoint_files import safetensors, write_json

from mergeengine.checkpoints import Checkpoint, open_checkpoint
from mergeengine.checkpoints.aliases import alias_of, is_embedding, is_head, redundant_alias

SHAPE = (10, 4)
WTE = "transformer.wte.weight"
EMBED = "model.embed_tokens.weight"


def checkpoint(
    folder: Path, *names: str, shape: tuple[int, ...] = SHAPE, **config: object
) -> Checkpoint:
    (folder / "model.safetensors").write_bytes(
        safetensors(dict.fromkeys(names, ("F32", list(shape))))
    )
    if config:
        write_json(folder / "config.json", config)
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("lm_head.weight", EMBED),
        ("lm_head.weight", WTE),
        ("lm_head.weight", "language_model.model.embed_tokens.weight"),
        ("lm_head.weight", "backbone.embeddings.weight"),
        ("lm_head.weight", "shared.weight"),
        (EMBED, "lm_head.weight"),
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("shared.weight", "decoder.embed_tokens.weight"),
        ("embed_out.weight", "gpt_neox.embed_in.weight"),
        ("output.weight", "tok_embeddings.weight"),
        ("proj_out.weight", "model.decoder.embed_tokens.weight"),
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    ],
)
def test_embeddings_and_heads_stand_for_each_other(name: str, stored: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path, stored, "model.norm.weight")
    assert alias_of(model, name, SHAPE) == stored
    assert alias_of(model, name, (11, 4)) is None


def test_a_config_that_says_untied_is_believed(tmp_path: Path) -> None:
    for config in (
        {"tie_word_embeddings": False},
        {"text_config": {"tie_word_embeddings": False}},
    ):
        model = checkpoint(tmp_path, EMBED, **config)
        assert alias_of(model, "lm_head.weight", SHAPE) is None
    for config in ({"tie_word_embeddings": True}, {"model_type": "llama"}):
        model = checkpoint(tmp_path, EMBED, **config)
        assert alias_of(model, "lm_head.weight", SHAPE) == EMBED


def test_what_is_called_shared_is_shared_even_where_the_head_is_untied(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, "shared.weight", "x.weight", tie_word_embeddings=False)
    assert alias_of(model, "encoder.embed_tokens.weight", SHAPE) == "shared.weight"
    assert alias_of(model, "lm_head.weight", SHAPE) is None


def test_biases_of_masked_language_heads(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, "cls.predictions.bias", "lm_head.decoder.bias", shape=(10,))
    assert alias_of(model, "cls.predictions.decoder.bias", (10,)) == "cls.predictions.bias"
    assert alias_of(model, "lm_head.bias", (10,)) == "lm_head.decoder.bias"
    assert alias_of(model, "pooler.bias", (10,)) is None


def test_tensors_of_layers_are_never_aliases(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, "model.layers.0.attention.output.weight", "wpe.weight")
    assert alias_of(model, "lm_head.weight", SHAPE) is None
    model = checkpoint(tmp_path, EMBED)
    assert alias_of(model, "model.layers.0.attention.output.weight", SHAPE) is None
    assert alias_of(model, "model.mylm_head.weight", SHAPE) is None
    assert alias_of(model, "model.embed_positions.weight", SHAPE) is None
    assert not is_embedding("h.0.wte.weight")
    assert is_head("model.lm_head.weight")


def test_the_decoder_s_embedding_is_preferred(tmp_path: Path) -> None:
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    assert alias_of(checkpoint(tmp_path, *names), "lm_head.weight", SHAPE) == names[1]


class TestRedundant:
    def write(self, folder: Path, change: bool, dtype: str = "F32") -> Checkpoint:
        tensors = {EMBED: ("F32", [10, 4]), "lm_head.weight": (dtype, [10, 4])}
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
        model = open_checkpoint(folder)
        one, two = model.tensors.values()
        with one.file.path.open("r+b") as file:
            file.seek(one.offset)
            data = bytearray(file.read(two.nbytes))
            data[-1] ^= change
            file.seek(two.offset)
            file.write(data)
        return model

    def test_the_same_bytes_are_redundant(self, tmp_path: Path) -> None:
        model = self.write(tmp_path, change=False)
        assert redundant_alias(model, "lm_head.weight") == EMBED
        assert redundant_alias(model, EMBED) == "lm_head.weight"

    def test_one_other_bit_is_not(self, tmp_path: Path) -> None:
        assert redundant_alias(self.write(tmp_path, change=True), "lm_head.weight") is None

    def test_another_dtype_is_not(self, tmp_path: Path) -> None:
        model = self.write(tmp_path, change=False, dtype="BF16")
        assert redundant_alias(model, "lm_head.weight") is None

    def test_another_tensor_is_not(self, tmp_path: Path) -> None:
        model = checkpoint(tmp_path, "a.weight", "b.weight")
        assert redundant_alias(model, "a.weight") is None
