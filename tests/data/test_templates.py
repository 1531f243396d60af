import math
import struct
from pathlib import Path

import numpy as np
import pytest

from fingerprint_accel.data.templates import TemplateError, iso_bytes, read_template, write_template, xyt_kind

POINTS = [(10, 20, 64, 80), (300, 400, 0, 50), (5, 6, 128, 0)]  # x, y, angle byte, quality
EXPECTED_ISO = [[10, 20, math.pi / 2, 0.8], [300, 400, 0, 0.5], [5, 6, math.pi, 0]]


def minutia(x, y, angle, quality, size=6):
    return struct.pack(">HHBB", (1 << 14) | x, (2 << 14) | y, angle, quality)[:size]


def iso_2005(width=320, height=480):
    body = b"".join(minutia(*point) for point in POINTS) + b"\0\0"
    header = struct.pack(">HHHHHBB", 0, width, height, 197, 197, 1, 0)
    view = bytes([1, 0, 90, len(POINTS)])
    length = 12 + len(header) + len(view) + len(body)
    return b"FMR\0 20\0" + struct.pack(">I", length) + header + view + body


def incits_378(extended=False):
    body = b"".join(minutia(x, y, angle % 180, quality) for x, y, angle, quality in POINTS) + b"\0\0"
    header = struct.pack(">HHHHHHHBB", 1, 2, 0, 320, 480, 197, 197, 1, 0)
    view = bytes([1, 0, 90, len(POINTS)])
    rest = len(header) + len(view) + len(body)
    length = b"\0\0" + struct.pack(">I", 14 + rest) if extended else struct.pack(">H", 10 + rest)
    return b"FMR\0 20\0" + length + header + view + body


def iso_2011(size=6, quality_blocks=2, certified=True):
    body = b"".join(minutia(*point, size=size) for point in POINTS) + b"\0\0"
    head = bytes(9) + b"\0" + bytes(4) + bytes([quality_blocks]) + bytes(5 * quality_blocks)
    head += bytes([1]) + bytes(3) if certified else b""
    head += struct.pack(">BBHHBHHBB", 1, 0, 197, 197, 0, 320, 480, size << 4, len(POINTS))
    representation = struct.pack(">I", 4 + len(head) + len(body)) + head + body
    return b"FMR\x00030\0" + struct.pack(">IHB", 15 + len(representation), 1, certified) + representation


def read(tmp_path: Path, data: bytes, name="a.fmr", height=480):
    path = tmp_path / name
    path.write_bytes(data)
    return read_template(path, height)


def test_iso_2005(tmp_path):
    template = read(tmp_path, iso_2005(), "a.ist")
    assert (template.width, template.height) == (320, 480)
    np.testing.assert_allclose(template.minutiae, EXPECTED_ISO, atol=1e-5)


@pytest.mark.parametrize("extended", [False, True])
def test_incits_378_counts_angles_in_two_degrees(tmp_path, extended):
    template = read(tmp_path, incits_378(extended))
    np.testing.assert_allclose(template.minutiae[:, :2], [[10, 20], [300, 400], [5, 6]])
    np.testing.assert_allclose(np.degrees(template.minutiae[:, 2]), [128, 0, 256], atol=1e-3)
    assert (template.width, template.height) == (320, 480)


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("quality_blocks", [0, 2])
@pytest.mark.parametrize("certified", [False, True])
def test_iso_2011(tmp_path, size, quality_blocks, certified):
    template = read(tmp_path, iso_2011(size, quality_blocks, certified))
    expected = np.array(EXPECTED_ISO)
    if size == 5:
        expected[:, 3] = 0
    np.testing.assert_allclose(template.minutiae, expected, atol=1e-5)
    assert (template.width, template.height) == (320, 480)


def test_xyt_of_both_kinds(tmp_path):
    plain = read(tmp_path, b"10 460 270 80\n20 400 90 10\n", "a.xyt", height=480)
    np.testing.assert_allclose(plain.minutiae, [[10, 20, math.pi / 2, 0.8], [20, 80, 3 * math.pi / 2, 0.1]], atol=1e-5)
    m1 = read(tmp_path, b"10 20 45 80\n20 80 135 10\n", "a.xyt", height=480)
    np.testing.assert_allclose(m1.minutiae, plain.minutiae, atol=1e-5)


def test_min_and_xyt_of_mindtct_agree(shared_data):
    folder = shared_data / "fvc2000_db1_b_nbis"
    checked = 0
    for path in sorted((folder / "min").glob("*.min")):
        of_min = read_template(path, 300).minutiae
        of_xyt = read_template(folder / "xyt" / f"{path.stem}.xyt", 300).minutiae
        assert len(of_min) == len(of_xyt)
        np.testing.assert_array_equal(of_min[:, :2], of_xyt[:, :2])
        turn = np.angle(np.exp(1j * (of_min[:, 2] - of_xyt[:, 2])))
        assert np.abs(turn).max() < math.radians(2.1), "mindtct rounds to two degrees"
        checked += len(of_min)
    assert checked > 1000


def test_points_scale_to_the_real_image(tmp_path):
    template = read(tmp_path, iso_2005(width=320, height=480))
    fitted = template.fitted(160, 480)
    np.testing.assert_allclose(fitted[:, 0], [5, 150, 2.5])
    np.testing.assert_allclose(fitted[:, 1], [20, 400, 6])
    np.testing.assert_allclose(fitted[0, 2], math.pi / 2, atol=1e-6)


@pytest.mark.parametrize("make", [iso_2005, incits_378, iso_2011])
def test_damage_has_a_reason_and_no_crash(tmp_path, make):
    whole = make()
    for cut in range(len(whole)):
        with pytest.raises(TemplateError):
            read(tmp_path, whole[:cut])
    for name, data in (("a.xyt", b"1 2\n"), ("a.xyt", b"a b c d"), ("a.min", b"nothing"), ("a.fmr", b"FMR\0 99\0")):
        with pytest.raises(TemplateError):
            read(tmp_path, data, name)


def of_several(record, header, count_at, positions, length_at, unit):
    """A record made one of several views or representations, which are all alike but for the finger's position."""
    view = record[header:]
    at = unit(view)
    body = b"".join(view[:at] + bytes([position]) + view[at + 1 :] for position in positions)
    whole = bytearray(record[:header] + body)
    whole[count_at] = len(positions)
    whole[length_at : length_at + 4] = struct.pack(">I", len(whole))
    return bytes(whole)


@pytest.mark.parametrize(("positions", "what"), [((1, 2, 3), "3 fingers"), ((1, 1), "2 views of a finger")])
def test_a_record_of_several_fingers_gives_none(tmp_path, positions, what):
    """Its first finger was taken, whoever's the image is."""
    record = iso_2011()
    head = 33 + 1 + 5 * 2 + 1 + 3  # bytes of a representation before the position, with quality blocks and certificate
    for several in (
        of_several(iso_2005(), 24, 22, positions, 8, lambda view: 0),
        of_several(incits_378(extended=True), 30, 28, positions, 10, lambda view: 0),
        of_several(record, 15, 13, positions, 8, lambda view: head - 15),
    ):
        with pytest.raises(TemplateError, match=f"^record of {what}, which cannot be told apart; state"):
            read(tmp_path, several)
    short = of_several(incits_378(extended=True), 30, 28, positions, 10, lambda view: 0)
    short = short[:8] + struct.pack(">H", len(short) - 4) + short[14:]
    with pytest.raises(TemplateError, match=f"record of {what}"):
        read(tmp_path, short)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300", "1e30", "70000"])
@pytest.mark.parametrize("place", range(4))
def test_numbers_that_no_print_can_have(tmp_path, number, place):
    words = ["10", "20", "200", "50"]
    words[place] = number
    data = f"30 40 10 20\n{' '.join(words)}\n".encode()
    with pytest.raises(TemplateError, match=r"^minutia 2 has numbers that are not finite or above 65535$"):
        read(tmp_path, data, "a.xyt")
    words[2] = words[2].replace("200", "7")
    line = "{} : {}, {} : {} : {} :RIG : DIS\n"
    text = "Image (w,h) 300 300\n\n2 Minutiae Detected\n\n" + line.format(0, 30, 40, 1, 0.2) + line.format(1, *words)
    with pytest.raises(TemplateError, match=r"not finite or above|2 minutiae announced, 1 that can be read"):
        read(tmp_path, text.encode(), "a.min")


def test_places_beyond_the_image_are_no_damage(tmp_path):
    """The canvas drops them; of a large image they may be right."""
    assert len(read(tmp_path, b"16383 20 200 50\n-5 20 10 50\n", "a.xyt").minutiae) == 2


def some_minutiae(count, seed=0):
    """(count, 4) with every angle and quality, on an image of 388 x 374."""
    generator = np.random.default_rng(seed)
    x, y, angle = generator.uniform(0, 388, count), generator.uniform(0, 374, count), generator.uniform(-4, 7, count)
    return np.stack([x, y, angle, generator.uniform(0.01, 1, count)], axis=1).astype(np.float32)


def turn(first, second):
    return np.abs(np.angle(np.exp(1j * (first - second))))


@pytest.mark.parametrize("kind", ["xyt", "iso"])
def test_what_is_written_is_read_again(tmp_path, kind):
    minutiae, path = some_minutiae(60), tmp_path / f"a.{kind}"
    write_template(path, minutiae, 388, 374, 500)
    template = read_template(path, 374)
    found = template.minutiae
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    wanted = minutiae[np.argsort(-minutiae[:, 3])] if kind == "iso" else minutiae
    assert np.abs(found[:, :2] - wanted[:, :2]).max() <= 0.5
    assert turn(found[:, 2], wanted[:, 2]).max() <= math.radians(0.71 if kind == "iso" else 0.51)
    assert np.abs(found[:, 3] - wanted[:, 3]).max() <= 0.0051
    assert (template.width, template.height) == ((388, 374) if kind == "iso" else (0, 0))


def test_iso_as_its_bytes_say():
    """Field by field what the standard lays down, as the hand-made record above has it."""
    points = np.array([[10, 20, math.pi / 2, 0.8], [300, 400, 0, 0.5], [5, 6, math.pi, 0]], np.float32)
    data = iso_bytes(points, 320, 480, 500)
    ours, hand_made = bytearray(data), bytearray(iso_2005())
    assert len(ours) == len(hand_made)
    for place in (24, 25, 26):  # finger, kind of impression, quality
        ours[place] = hand_made[place] = 0
    for first in (28, 34, 40):  # kind of minutia
        hand_made[first] &= 63
        hand_made[first + 2] &= 63
    ours[45] = hand_made[45] = 0  # the lowest quality is 1, as 0 means none
    assert data[45] == 1
    assert ours == hand_made
    many = iso_bytes(some_minutiae(300), 388, 374, 500)
    assert (many[27], len(many)) == (255, 24 + 4 + 255 * 6 + 2)
    assert min(many[33:-2:6]) >= 14, "the 45 of least quality are left out"


def test_xyt_of_few_minutiae_is_not_taken_for_another_kind(tmp_path):
    """Every plain angle below 180: the file would read as one of `mindtct -m1`."""
    minutiae = np.array([[10, 20, math.radians(200), 0.5], [30, 40, math.radians(300), 0.5]], np.float32)
    for kept in (minutiae, minutiae[:1], minutiae[:0]):
        write_template(tmp_path / "a.xyt", kept, 100, 100, 500)
        found = read_template(tmp_path / "a.xyt", 100).minutiae
        np.testing.assert_allclose(found, kept.reshape(-1, 4), atol=1e-3)
    assert (tmp_path / "a.xyt").read_text() == ""


def test_real_minutiae_come_back(shared_data, tmp_path):
    """mindtct's files are of the kind -m1 and ours are not; both say the same."""
    for path in sorted((shared_data / "fvc2000_db1_b_nbis" / "xyt").glob("*.xyt"))[:10]:
        theirs = read_template(path, 300).minutiae
        write_template(tmp_path / "a.xyt", theirs, 300, 300, 500)
        ours = read_template(tmp_path / "a.xyt", 300).minutiae
        np.testing.assert_allclose(ours[:, [0, 1, 3]], theirs[:, [0, 1, 3]], atol=1e-6)
        assert turn(ours[:, 2], theirs[:, 2]).max() < 1e-5


def incits_378_2009(version=b"030", draft=False, views=((3, POINTS),)):
    body = b""
    for position, points in views:
        body += bytes([position, 0, 0, 80]) + struct.pack(">HHHHHHB", 16, 1, 320, 480, 197, 197, len(points))
        body += b"".join(minutia(x, y, angle % 180, quality) for x, y, angle, quality in points) + b"\0\0"
    head = struct.pack(">HH", 16, 1) + bytes(2 if draft else 3) + bytes([len(views), 0])
    return b"FMR\0" + version + b"\0" + struct.pack(">I", 12 + len(head) + len(body)) + head + body


@pytest.mark.parametrize("data", [incits_378_2009(), incits_378_2009(draft=True), incits_378_2009(b"035")])
def test_incits_378_of_2009_its_draft_and_amendment(tmp_path, data):
    template = read(tmp_path, data)
    assert (template.width, template.height) == (320, 480)
    assert template.ppi == pytest.approx(500.38)
    np.testing.assert_allclose(template.minutiae[:, :2], [[10, 20], [300, 400], [5, 6]])
    np.testing.assert_allclose(np.degrees(template.minutiae[:, 2]), [128, 0, 256], atol=1e-3)
    np.testing.assert_allclose(template.minutiae[:, 3], [0.8, 0.5, 0])


@pytest.mark.parametrize("make", [iso_2005, incits_378, iso_2011, incits_378_2009])
@pytest.mark.parametrize("padding", [b"\0" * 700, b"\xff" * 33])
def test_buffers_longer_than_their_record(tmp_path, make, padding):
    np.testing.assert_array_equal(read(tmp_path, make() + padding).minutiae, read(tmp_path, make(), "b.fmr").minutiae)


def test_other_bytes_behind_a_record_are_no_padding(tmp_path):
    with pytest.raises(TemplateError):
        read(tmp_path, iso_2005() + b"something else")


def test_the_finger_of_the_image_is_taken_from_a_record_of_several(tmp_path):
    path = tmp_path / "hand.ansi"
    path.write_bytes(incits_378_2009(views=((2, POINTS), (3, POINTS[:1]), (3, POINTS[:2]), (4, POINTS[:2]))))
    assert len(read_template(path, 480, position=2).minutiae) == 3
    assert len(read_template(path, 480, position=4).minutiae) == 2
    for position in (0, 3, 7):
        with pytest.raises(TemplateError, match="record of 3 fingers, which cannot be told apart"):
            read_template(path, 480, position)


def test_a_record_of_another_finger_than_the_image_shows(tmp_path):
    path = tmp_path / "one.ansi"
    path.write_bytes(incits_378_2009())
    assert len(read_template(path, 480, position=3).minutiae) == 3
    with pytest.raises(TemplateError, match="of finger position 3, but the image shows finger position 7"):
        read_template(path, 480, position=7)


def test_resolution_decides_where_no_size_is_stated(tmp_path):
    data = iso_2005(width=0, height=0)
    data = data[:18] + struct.pack(">HH", 394, 394) + data[22:]  # 1,000 ppi
    template = read(tmp_path, data)
    np.testing.assert_allclose(template.fitted(388, 374, 500)[:, :2], [[5, 10], [150, 200], [2.5, 3]], rtol=2e-3)
    np.testing.assert_array_equal(template.fitted(388, 374, 1000), template.minutiae)


def test_records_in_a_cbeff_wrapper(tmp_path):
    np.testing.assert_allclose(read(tmp_path, bytes(88) + iso_2005()).minutiae, EXPECTED_ISO, atol=1e-5)


@pytest.mark.parametrize("wrapped", [False, True])
def test_on_card_compact_size(tmp_path, wrapped):
    data = bytes([50, 80, 0b01_010000]) + bytes([200, 30, 0b10_100000])  # 5.0 mm, 8.0 mm, ending, 90 degrees; ...
    if wrapped:
        data = b"\x7f\x2e" + bytes([4 + len(data)]) + b"\x87\x00" + b"\x81" + bytes([len(data)]) + data
    template = read(tmp_path, data, "a.iso-cc")
    fitted = template.fitted(400, 400, 500)
    np.testing.assert_allclose(fitted[:, :2], np.array([[50, 80], [200, 30]]) / 10 / 25.4 * 500, rtol=1e-5)
    np.testing.assert_allclose(fitted[:, 2] % (2 * math.pi), [math.pi / 2, math.pi], rtol=1e-5)


MNT = ["a.png\n2 300 400\n10 20 1.5\n30 40 3.0\n", "2\n300 400\n10 20 1.5 0.9\n30 40 3.0 0.5\n"]


@pytest.mark.parametrize("text", MNT)
def test_mnt_as_flx_and_fingernet_write_it(tmp_path, text):
    template = read(tmp_path, text.encode(), "a.mnt")
    assert (template.width, template.height) == (300, 400)
    np.testing.assert_allclose(template.minutiae[:, :3], [[10, 20, 1.5], [30, 40, 3.0]])


def test_xyt_files_of_a_folder_decide_together(tmp_path):
    few = tmp_path / "few.xyt"
    few.write_text("10 20 30 50\n")
    many = tmp_path / "many.xyt"
    many.write_text("10 20 30 50\n50 60 270 10\n")
    broken = tmp_path / "broken.xyt"
    broken.write_text("10 20\n")
    assert (xyt_kind([few]), xyt_kind([broken, few, many])) == ("m1", "nist")
    alone, together = read_template(few, 100).minutiae[0], read_template(few, 100, xyt_kind="nist").minutiae[0]
    np.testing.assert_allclose(alone[:3], [10, 20, math.radians(60)], rtol=1e-5)
    np.testing.assert_allclose(together[:3], [10, 80, math.radians(210)], rtol=1e-5)
