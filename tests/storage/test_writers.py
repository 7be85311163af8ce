"""What writes to disks only, with a bucket behind it; and single pictures that a user names."""

import sys
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import write_atomically
from ddpm_jax.monitoring.profiling import Trace
from ddpm_jax.monitoring.tensorboard import TENSORBOARD, Events
from ddpm_jax.monitoring.weights_and_biases import RUN_ID, WeightsAndBiases
from ddpm_jax.tasks.photos import read_photo

pytestmark = pytest.mark.full


# Gcsfs's way, in a thread of its own
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_trace_comes_into_the_bucket_and_leaves_nothing_here(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Trace(folder / "tensorboard", first=1, last=1) as trace, trace.call(0, 1):
        trace.done(1, jnp.ones(3) + 1)
    (profile,) = (folder / "tensorboard" / "plugins" / "profile").iterdir()
    assert any(path.name.endswith(".xplane.pb") for path in profile.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_told_of_a_resume_also_where_a_save_comes_before_the_first_record(folder):
    from tensorboardX.proto import event_pb2

    events = Events(folder / "events", resume_step=3)
    events.flush()
    events.scalars(5, {"loss": 1.0})
    events.flush()
    (path,) = (folder / "events" / TENSORBOARD).iterdir()
    data, start, steps = path.read_bytes(), 0, []
    while start < len(data):
        length = int.from_bytes(data[start : start + 8], "little")
        event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
        steps += [event.step] if event.HasField("session_log") else []
        start += 12 + length + 4
    assert steps == [4]


def test_weights_and_biases_writes_here_and_its_id_is_kept_in_the_bucket(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    package = mock.Mock()
    monkeypatch.setitem(sys.modules, "wandb", package)
    for _ in range(2):  # the second is a resume
        WeightsAndBiases(folder / "my_run", "digits", {}).close()
    first, second = (call.kwargs for call in package.init.call_args_list)
    assert first["id"] == second["id"] == (folder / "my_run" / RUN_ID).read_text()
    assert first["name"] == "my_run"
    assert first["dir"].startswith(str(tmp_path))


def test_a_photo_is_read_from_the_bucket_or_refused_by_its_name(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    write_atomically(folder / "photo.png", (tmp_path / "photo.png").read_bytes())
    photo = str(folder / "photo.png")
    np.testing.assert_array_equal(read_photo("init_image", photo, (8, 8, 3)), pixels)
    with pytest.raises(
        UsageError, match=r"init_image: there is no file gs://bucket/\S+/absent.png"
    ):
        read_photo("init_image", str(folder / "absent.png"), (8, 8, 3))
    with pytest.raises(
        FailureError, match=r"Cannot read gs://forbidden/photo.png: Google Cloud forbids it"
    ):
        read_photo("init_image", "gs://forbidden/photo.png", (8, 8, 3))
