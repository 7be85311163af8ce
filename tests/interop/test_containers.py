"""What files and directories of other projects hold: groups of tensors, and plain values."""

import json
import pathlib
import re
import struct
import tracemalloc

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.containers import open_container

from .pickled import dict_of, list_of, state_dict, tensor, text, whole, write_legacy, write_zip

PICKLES = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/pickles"
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
TENSORS = {
    "grid": GRID,
    "columns": np.asfortranarray(GRID),
    "half": np.arange(5, dtype=np.float16),
    "bytes": np.arange(7, dtype=np.uint8),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


def assert_holds(group, tensors):
    assert set(group) == set(tensors)
    for name, value in tensors.items():
        assert group[name].dtype == value.dtype
        np.testing.assert_array_equal(group[name], value)
        assert not group[name].flags.writeable


def refusal(path, **options):
    with pytest.raises(UsageError) as error:
        open_container(path, **options)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture(params=[write_zip, write_legacy])
def pickled(request, tmp_path):
    return lambda content: open_container(request.param(tmp_path / "weights.pt", content))


OPTIMISER = dict_of(
    state=b"}" + whole(0) + dict_of(step=whole(1), exp_avg=tensor()) + b"s",
    param_groups=list_of(dict_of(lr=b"G" + bytes(8))),
)


def test_a_state_dict_is_the_group_without_a_name(pickled):
    found = pickled(dict_of(w=tensor(), step=whole(7)))
    assert found.kind == "a file of PyTorch"
    assert list(found.groups) == [""]
    assert_holds(found.groups[""], {"w": GRID})
    assert (found.facts, found.unread) == ({"step": 7}, {})


def test_state_dicts_within_dicts_have_their_keys(pickled):
    found = pickled(
        dict_of(
            step=whole(5),
            model=state_dict(tensor()),
            opt=OPTIMISER,
            ema=dict_of(
                **{"ema_model.model.w": tensor((6, 4), (1, 6)), "step": tensor((), (), 3)},
            ),
            scaler=b"N",
            version=text("1.2.3"),
            options=dict_of(betas=list_of(whole(1), whole(2)), deep=dict_of(layers=tensor())),
        )
    )
    assert set(found.groups) == {"model", "ema", "options.deep"}
    assert_holds(found.groups["model"], {"w": GRID})
    assert_holds(found.groups["ema"], {"ema_model.model.w": GRID.T, "step": np.float32(3)})
    assert found.facts == {"step": 5, "scaler": None, "version": "1.2.3", "options.betas": [1, 2]}
    assert found.unread == {"opt": "the state of an optimiser"}


def test_state_dicts_within_a_list_have_its_numbers(pickled):
    found = pickled(
        list_of(state_dict(tensor()), OPTIMISER, whole(3), whole(1234), state_dict(tensor(), "v"))
    )
    assert {name: list(group) for name, group in found.groups.items()} == {"0": ["w"], "4": ["v"]}
    assert found.facts == {"2": 3, "3": 1234}
    assert found.unread == {"1": "the state of an optimiser"}


def test_arguments_of_a_command_are_facts(pickled):
    arguments = (
        b"cargparse\nNamespace\n)\x81" + dict_of(model=text("DiT-S/2"), classes=whole(9)) + b"b"
    )
    found = pickled(dict_of(ema=state_dict(tensor()), args=arguments))
    assert found.facts == {"args.model": "DiT-S/2", "args.classes": 9}


# each list twice in the next one
LAUGHS = (
    b"](](K\x01K\x01eq\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(28)) + b"e"
)
ONE_LEVEL = b"](" + b"K\x01" * 50_000 + b"eq\x00"
PAIRS = b"](" + text("a") + b"K\x01\x86q\x00" + b"h\x00" * 50_000 + b"eq\x01"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"]q\x00h\x00a", "nested too deeply"),
        (b"}q\x00" + text("a") + b"h\x00s", "nested too deeply"),
        (dict_of(a=b"]" * 40 + b"a" * 39), "nested too deeply"),
        (dict_of(a=tensor(), b=LAUGHS), "more entries than any checkpoint"),
        (ONE_LEVEL + b"](" + b"h\x00" * 100 + b"e", "more entries than any checkpoint"),
        (
            PAIRS + b"ccollections\nOrderedDict\nq\x02" + b"h\x02h\x01\x85R" * 100,
            "more than 2,000,000 opcodes",
        ),
        (
            dict_of(**{"a.b": tensor()}, a=dict_of(b=tensor())),
            "two of its entries are called 'a.b'",
        ),
        (b"}(" + whole(1) + state_dict(tensor()) + text("1") + whole(3) + b"u", "called '1'"),
        (dict_of(**{"x" * 1001: tensor()}), "more than 1,000 characters"),
        (OPTIMISER, "no tensors by name besides the state of an optimiser"),
        (tensor(), "a tensor without a name"),
        (whole(1), "no tensors by name"),
        (b"cargparse\nNamespace\n" + whole(1) + b"\x85\x81", "makes an object of what is no class"),
    ],
)
def test_containers_without_end_or_names_are_refused(tmp_path, content, said):
    write_zip(tmp_path / "weights.pt", content)
    assert re.search(said, refusal(tmp_path / "weights.pt"))


def test_numbers_and_objects_that_are_no_plain_values_are_named(pickled):
    found = pickled(
        dict_of(
            w=tensor(),
            big=b"\x8a\x10" + b"\x7f" * 16,
            size=b"ctorch\nSize\n)R",
            by=b"ctorch\nFloatStorage\n",
        )
    )
    assert found.facts == {}
    assert found.unread == {
        "big": "a number of more than 64 bits",
        "size": "an object that is no plain value",
        "by": "an object that is no plain value",
    }


def test_views_and_types_of_a_file_of_pytorch():
    found = open_container(PICKLES / "good_views_and_types.pt")
    with np.load(PICKLES / "good_views_and_types.npz") as file:
        wanted = dict(file)
    assert set(found.groups) == {"", "ordered"}
    tensors = {
        **found.groups[""],
        **{f"ordered.{k}": v for k, v in found.groups["ordered"].items()},
    }
    wanted["bf16"] = wanted.pop("bf16_as_f32")
    for name, value in wanted.items():
        np.testing.assert_array_equal(tensors[name].astype(value.dtype), value)
    assert found.facts["nested.list"] == [1, 2.5, "s", None, True]


HOSTILE = [path.name for path in sorted(PICKLES.glob("*.pt")) if "good" not in path.name]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_files_are_refused_and_not_executed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(PICKLES / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_checkpoints_of_training_as_pytorch_saves_them(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimiser.step()
    state, average = model.state_dict(), torch.nn.ModuleDict({"ema_model": model}).state_dict()
    average |= {"initted": torch.tensor(True), "step": torch.tensor(4)}
    saved = {"step": 700, "model": state, "opt": optimiser.state_dict(), "ema": average}
    torch.save({**saved, "scaler": None, "version": "2.2.5"}, tmp_path / "model-7.pt")
    found = open_container(tmp_path / "model-7.pt")
    assert_holds(found.groups["model"], {name: value.numpy() for name, value in state.items()})
    assert_holds(found.groups["ema"], {name: value.numpy() for name, value in average.items()})
    assert found.facts == {"step": 700, "scaler": None, "version": "2.2.5"}
    assert found.unread == {"opt": "the state of an optimiser"}
    torch.save([state, optimiser.state_dict(), 3, 1234, state], tmp_path / "ckpt.pth")
    found = open_container(tmp_path / "ckpt.pth")
    assert set(found.groups) == {"0", "4"}  # one state dict, twice
    assert found.facts == {"2": 3, "3": 1234}


def test_safetensors(tmp_path):
    tensors = {**TENSORS, "columns": GRID, "bf": GRID.astype(ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / "x.bin", {"format": "pt"})
    found = open_container(tmp_path / "x.bin")
    assert found.kind == "a safetensors file"
    assert_holds(found.groups[""], tensors)
    assert found.facts == {"format": "pt"}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    tensors = {**TENSORS, "big": GRID.astype(">f4"), "params/conv_in/kernel": GRID}
    save(tmp_path / "x.npz", **tensors)
    (tmp_path / "x.npz").rename(tmp_path / "x.pt")
    found = open_container(tmp_path / "x.pt")
    assert found.kind == "an NPZ file"
    assert_holds(found.groups[""], tensors)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_npz_file_are_read_one_at_a_time(tmp_path, save):
    rng = np.random.default_rng(0)
    tensors = {str(i): rng.normal(size=200_000).astype(np.float32) for i in range(8)}
    save(tmp_path / "x.npz", **tensors)
    total = sum(value.nbytes for value in tensors.values())
    open_container(tmp_path / "x.npz")
    tracemalloc.start()
    group = open_container(tmp_path / "x.npz").groups[""]
    copies = {name: np.array(group[name]) for name in group}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_holds(group, copies)
    assert peak < 1.25 * total


def test_a_damaged_array_of_an_npz_file_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(10_000.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"a of .*x.npz is damaged"):
        open_container(path).groups[""]["a"]


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline's directory, and the tensors of its networks."""
    networks = {"unet": TENSORS, "unet_ema": {name: value * 2 for name, value in TENSORS.items()}}
    networks = {k: {n: np.ascontiguousarray(v) for n, v in x.items()} for k, x in networks.items()}
    for name, tensors in networks.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "diffusion_pytorch_model.safetensors")
        (tmp_path / name / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"lambda_min_clipped": -Infinity}')
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    return tmp_path, networks


def test_a_pipeline_has_a_group_for_each_network(pipeline):
    path, networks = pipeline
    found = open_container(path)
    assert found.kind == "a directory of diffusers"
    assert set(found.groups) == set(networks)
    for name, tensors in networks.items():
        assert_holds(found.groups[name], tensors)
    assert found.facts == {
        "model_index.json": {"_class_name": "DDPMPipeline"},
        "unet/config.json": {"_class_name": "UNet2DModel"},
        "unet_ema/config.json": {"_class_name": "UNet2DModel"},
        "scheduler/scheduler_config.json": {"lambda_min_clipped": None},
    }


def test_networks_that_flax_saved(pipeline):
    path, networks = pipeline
    for name, tensors in networks.items():
        (path / name / "diffusion_pytorch_model.safetensors").unlink()
        tree = {"conv_in": tensors}
        packed = flax.serialization.msgpack_serialize(tree)
        (path / name / "diffusion_flax_model.msgpack").write_bytes(packed)
        wanted = {f"conv_in.{name}": value for name, value in tensors.items()}
        assert_holds(open_container(path / name).groups[""], wanted)
        assert_holds(open_container(path).groups[name], wanted)
    (path / "unet/diffusion_flax_model.msgpack").write_bytes(packed[:-1])
    assert "diffusion_flax_model.msgpack is no whole file of Flax" in refusal(path)


def test_the_folder_of_a_network_is_the_group_without_a_name(pipeline):
    path, networks = pipeline
    found = open_container(path / "unet")
    assert_holds(found.groups[""], networks["unet"])
    assert found.facts == {"config.json": {"_class_name": "UNet2DModel"}}


def test_a_variant_of_one_network_leaves_the_others(pipeline):
    path, networks = pipeline
    save_file({"w": GRID}, path / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert_holds(open_container(path).groups["unet"], networks["unet"])
    found = open_container(path, variant="fp16")
    assert_holds(found.groups["unet"], {"w": GRID})
    assert_holds(found.groups["unet_ema"], networks["unet_ema"])
    assert "no weights of the variant 'fp8'; there is fp16" in refusal(path, variant="fp8")


def test_several_files_with_an_index(tmp_path):
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard, name in zip(shards, ("grid", "half"), strict=True):
        save_file({name: TENSORS[name]}, tmp_path / shard)
    places = {"grid": shards[0], "half": shards[1]}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (index, tmp_path):
        assert_holds(open_container(path).groups[""], {name: TENSORS[name] for name in places})
    index.write_text(json.dumps({"weight_map": {"grid": "../x.safetensors"}}))
    assert "damaged" in refusal(index)


def test_a_zip_file_whose_directory_would_fill_the_memory_is_refused(tmp_path):
    size = 17 << 20
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, size, 0, 0)
    (tmp_path / "x").write_bytes(b"PK\x03\x04".ljust(size, b"\0") + end)
    tracemalloc.start()
    assert "its directory has more than 16,777,216 bytes" in refusal(tmp_path / "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_what_is_no_checkpoint_is_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing")
    assert "but none of diffusers" in refusal(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    assert "has a model_index.json, but no folder of a network" in refusal(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text("{}")
    assert "unet has no weights beside its config: a file such as" in refusal(tmp_path)
    assert f"name the folder that holds both, {tmp_path / 'unet'}." in refusal(
        tmp_path / "unet/config.json"
    )
    (tmp_path / "x").write_bytes(b"hello, world")
    assert "of no format that is read here" in refusal(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"")
    assert "it is empty" in refusal(tmp_path / "x")
