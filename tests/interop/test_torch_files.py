from __future__ import annotations

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.interop import torch_file
from vlmax.errors import InputError
from vlmax.interop import torch_files

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.arange(3, dtype=np.float16),
    "b": np.asarray(2.5, ml_dtypes.bfloat16).reshape(()),
    "ids": np.arange(4).reshape(1, 4),
}


def test_tensors(tmp_path):
    torch_file.write(tmp_path / "model.bin", ARRAYS)
    found = torch_files.read(tmp_path / "model.bin")
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].values(), array)


def test_a_training_checkpoint_gives_its_state(tmp_path):
    inner = torch_file.program(ARRAYS)[2:-1]
    data = b"\x80\x02}(" + torch_file.text("epoch") + b"K\x03" + torch_file.text("state_dict") + inner + b"u."
    torch_file.write(tmp_path / "model.pt", ARRAYS, data)
    assert set(torch_files.read(tmp_path / "model.pt")) == set(ARRAYS)


def test_objects_of_torchscript_are_their_attributes(tmp_path):
    weight = torch_file.text("weight") + torch_file.tensor(ARRAYS["a.weight"], "0")
    inner = b"c__torch__.torch.nn.Linear\nLinear\n)\x81}(" + weight + torch_file.text("training") + b"\x89ub"
    data = b"\x80\x02c__torch__.CLIP\nCLIP\n)\x81}(" + torch_file.text("proj") + inner + b"ub."
    torch_file.write(tmp_path / "model.pt", ARRAYS, data)
    found = torch_files.read(tmp_path / "model.pt")
    assert list(found) == ["proj.weight"]
    np.testing.assert_array_equal(found["proj.weight"].values(), ARRAYS["a.weight"])


class Opened:
    def __reduce__(self):
        return (open, ("/dev/null",))


@pytest.mark.parametrize("code", [torch_file.Bomb(), Opened(), Opened, {1, 2}, 1 + 2j])
def test_code_is_refused_and_not_run(code, tmp_path, capsys):
    torch_file.write(tmp_path / "model.bin", ARRAYS, pickle.dumps({"weight": code}, protocol=2))
    with pytest.raises(InputError, match=r"more than weights.*nothing of it was run|damaged|no dictionary of tensors"):
        torch_files.read(tmp_path / "model.bin")
    assert "it ran" not in capsys.readouterr().out


def test_code_among_weights_is_refused(tmp_path):
    more = torch_file.text("evil") + b"cos\nsystem\n(" + torch_file.text("echo it ran") + b"tR"
    torch_file.write(tmp_path / "model.bin", ARRAYS, torch_file.program(ARRAYS, more))
    with pytest.raises(InputError, match=r"a call of os\.system; nothing of it was run"):
        torch_files.read(tmp_path / "model.bin")


def test_an_object_of_a_class_is_refused(tmp_path):
    more = torch_file.text("evil") + b"csubprocess\nPopen\n)\x81"
    torch_file.write(tmp_path / "model.bin", ARRAYS, torch_file.program(ARRAYS, more))
    with pytest.raises(InputError, match=r"an object of subprocess\.Popen"):
        torch_files.read(tmp_path / "model.bin")


def test_damage(tmp_path):
    path = tmp_path / "model.bin"
    torch_file.write(path, ARRAYS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut off"):
        torch_files.read(path)
    path.write_bytes(b"\x80\x02}.")
    with pytest.raises(InputError, match="no torch file"):
        torch_files.read(path)
    torch_file.write(path, ARRAYS, torch_file.program({"a.weight": np.zeros((200, 300), np.float32)}))
    with pytest.raises(InputError, match="reaches past the end"):
        torch_files.read(path)
    for start, size in ((-1, 3), (0, -3)):
        pair = torch_file.text("w") + torch_file.tensor(ARRAYS["a.bias"], "1")
        found = torch_file.number(0) + torch_file.numbers((3,))
        wrong = pair.replace(found, torch_file.number(start) + torch_file.numbers((size,)))
        torch_file.write(path, ARRAYS, torch_file.program({}, wrong))
        with pytest.raises(InputError, match="begins at"):
            torch_files.read(path)


@pytest.mark.parametrize(
    "program", [b"\x80\x02K\x01K\x02a.", b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", b"\x80\x02h\x05."]
)
def test_a_pickle_that_makes_no_sense(program, tmp_path):
    torch_file.write(tmp_path / "model.bin", ARRAYS, program)
    with pytest.raises(InputError, match="it is damaged"):
        torch_files.read(tmp_path / "model.bin")


def test_bytes_in_another_order(tmp_path):
    torch_file.write(tmp_path / "model.bin", ARRAYS)
    with zipfile.ZipFile(tmp_path / "model.bin", "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(InputError, match="big-endian"):
        torch_files.read(tmp_path / "model.bin")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.bin", "w") as archive:
        archive.writestr("text", "")
    with pytest.raises(InputError, match="this zip is no torch file"):
        torch_files.read(tmp_path / "model.bin")


def test_a_transposed_tensor_is_refused(tmp_path):
    torch_file.write(tmp_path / "model.bin", {"w": np.zeros((2, 3), np.float32).T})
    with pytest.raises(InputError, match=r"the tensor w \[3, 2\] is not contiguous.*safetensors"):
        torch_files.read(tmp_path / "model.bin")
