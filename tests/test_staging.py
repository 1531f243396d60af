"""What killed processes leave in staging folders and outputs."""

from fingerprint_accel.staging import ARGUMENTS, delete_records, discard_drafts


def test_drafts_of_libraries_are_deleted(tmp_path):
    """safetensors writes to files such as `.tmpQ0K3bE`, which were published with the shards."""
    (tmp_path / "records").mkdir()
    for name in (".tmpQ0K3bE", ".host-1-2-shard.tmp", "shard", "records/.shard.json.tmp", "records/shard.json"):
        (tmp_path / name).touch()
    discard_drafts(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["records", "records/shard.json", "shard"]


def test_records_are_deleted_and_nothing_else(tmp_path):
    """A kill in the middle of it leaves records without arguments; the next command deletes them."""
    for names, left in (
        ([ARGUMENTS, "a.json", "b.json"], False),
        (["b.json"], False),
        ([], False),
        (["a.json", "of the user.txt"], True),
    ):
        (tmp_path / "records").mkdir(exist_ok=True)
        for name in names:
            (tmp_path / "records" / name).touch()
        delete_records(tmp_path, ["a", "b"])
        assert (tmp_path / "records").exists() == left
