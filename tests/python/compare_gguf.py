"""Reads a GGUF file with the gguf package and compares it with the output of `kbit inspect --tensors --metadata --json`."""

import hashlib
import json
import sys

import gguf


def main(path, inspected_path):
    reader = gguf.GGUFReader(path)
    with open(inspected_path, encoding="utf-8") as file:
        inspected = json.load(file)
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    assert list(theirs) == [tensor["name"] for tensor in inspected["tensors"]], "names or order differ"
    for ours in inspected["tensors"]:
        tensor = theirs[ours["name"]]
        assert [int(axis) for axis in reversed(tensor.shape)] == ours["shape"], ours["name"]
        assert tensor.tensor_type.name == ours["type"], ours["name"]
        assert int(tensor.data_offset) == ours["offset"], ours["name"]
        if "sha256" in ours:
            assert hashlib.sha256(tensor.data.tobytes()).hexdigest() == ours["sha256"], ours["name"]
    for key, value in inspected["metadata"].items():
        field = reader.fields[key]
        contents = field.contents()
        if isinstance(value, float):
            assert abs(contents - value) <= 1e-6 * abs(value), key
        elif isinstance(value, dict):  # a long array is summarised
            assert len(contents) == value["length"], key
        else:
            assert contents == value, (key, contents, value)
    hashes = inspected["metadata"].get("kbit.tensor_sha256")
    if isinstance(hashes, list):
        for tensor, expected in zip(reader.tensors, hashes):
            assert hashlib.sha256(tensor.data.tobytes()).hexdigest() == expected, tensor.name


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
