"Hostile and odd input: a fixed sample of the cases of input_cases.py, the whole of them when asked for, and some places that deserve every byte"
import os, random, struct, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
sys.path.insert(0, str(Path(__file__).parent))
import input_cases as ic
from infoutil.basics import DataError, InfoUtilError
from infoutil.data import load_folder
from infoutil.engine.seen_images import warn_duplicates
from infoutil.images import read_image

CASES = 400     # of the fixed sample
total = sum(w for w,_ in ic.KINDS.values())

# what is known to be wrong, until it is mended
@pytest.mark.parametrize('kind', ic.KINDS)
def test_sample(kind):
    "hypothesis draws every number a case is made of, so that a failure shrinks to a small one"
    few = settings(derandomize=True, database=None, deadline=None, max_examples=max(2, CASES*ic.KINDS[kind][0]//total), suppress_health_check=list(HealthCheck))
    @few
    @given(st.randoms(use_true_random=False))
    def case(r): ic.run_case(kind, r)
    case()

@pytest.mark.slow
def test_ten_thousand():
    _, failures = ic.run(10000, 0)
    assert not failures, [(k, i, str(e)[:200]) for k,i,e in failures[:10]]

# --- every byte --------------------------------------------------------------------------------------------------------------

def pictures():
    r = random.Random(0)
    yield from ((make.__name__, make(r)) for make in ic.IMAGES[:6])
    yield 'progressive', (ic.saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)), 'JPEG', progressive=True), np.zeros((9, 9, 3)), 256)

@pytest.mark.parametrize('name,made', [pytest.param(*p, id=p[0]) for p in pictures()])
def test_every_prefix_of_an_image(name, made, tmp_path):
    raw, seen, _ = made
    f, s = tmp_path/'x.png', min(seen.shape[:2])
    f.write_bytes(raw); whole, refused = read_image(f, s), 0
    for n in range(0, len(raw), 1+len(raw)//500):
        f.write_bytes(raw[:n])
        try: assert torch.equal(read_image(f, s), whole), f'{n} of {len(raw)} bytes show another picture'
        except DataError as e: refused += bool(ic.refused(e, 'x.png'))
    assert refused>len(raw)//(1+len(raw)//500)//3

@pytest.mark.slow
@pytest.mark.parametrize('part', ['teacher', 'set'])
def test_every_byte_of_what_is_kept(part, tmp_path):
    "Every file cut at every byte, and every byte changed; of files above 4 kB every tenth"
    import shutil
    shutil.copytree(ic.Kept.at()/part, tmp_path/part)
    load, same, whole = getattr(ic.Kept, f'load_{part}'), getattr(ic, f'same_{part}'), getattr(ic.Kept, part)
    for f in sorted(p for p in (tmp_path/part).rglob('*') if p.is_file()):
        raw = f.read_bytes()
        for n in range(0, len(raw), 1 if len(raw)<4096 else 10):
            for new in (raw[:n], raw[:n]+bytes([raw[n]^1])+raw[n+1:]):
                f.write_bytes(new)
                ic.judge(lambda: load(tmp_path/part), lambda x: same(x, whole), f.name, part)
        f.write_bytes(raw)

# --- named places ------------------------------------------------------------------------------------------------------------

def test_all_eight_orientations(tmp_path):
    a = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)*10
    for k in range(1, 9):
        exif = Image.Exif(); exif[0x0112] = k
        for name in ('x.png', 'x.tif', 'x.webp'):
            Image.fromarray(a).save(tmp_path/name, exif=exif, **(dict(lossless=True) if name=='x.webp' else {}))
            ic.is_picture(ic.turned(a, k).astype(float), 0)(read_image(tmp_path/name, 2))

def test_a_picture_is_read_whatever_its_exif(tmp_path):
    "EXIF that is none, of wrong types, or that leads nowhere costs no picture; a turn that can be read is made"
    a = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    entries = lambda *rows: b'Exif\0\0II*\0\x08\0\0\0'+struct.pack('<H', len(rows))+b''.join(struct.pack('<HHI4s', *r) for r in rows)+bytes(4)
    turn = (0x0112, 3, 1, struct.pack('<H', 6))
    told = dict(none=(b'no EXIF', 1), cut=(b'Exif\0\0II*\0', 1), turn=(entries(turn), 6), text=(entries(turn, (0x011a, 2, 4, b'abcd')), 6), maker=(entries((0x010f, 10, 1, b'\x08'), turn), 6),
                gps=(entries(turn, (0x8825, 9, 1, struct.pack('<i', -5))), 6))
    for name, (exif, k) in told.items():
        for end in ('png', 'webp', 'jpg'):
            if (name, end)==('none', 'jpg'): continue
            Image.fromarray(a).save(f:=tmp_path/f'{name}.{end}', exif=exif, **(dict(lossless=True) if end=='webp' else dict(quality=95) if end=='jpg' else {}))
            ic.is_picture(ic.turned(np.array(Image.open(f).convert('RGB')), k).astype(float), 0)(read_image(f, 8))

def test_warnings_of_pillow_are_no_errors(tmp_path):
    "With warnings turned into errors, a file is still read or refused with a sentence"
    r = random.Random(3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for i in range(20):
            f = ic.write(tmp_path, ic.some_bomb(r)[1] if i%2 else ic.some_png(r)[0])
            try: read_image(f, 8)
            except InfoUtilError as e: ic.refused(e, f.name)

def test_limit_of_pixels_is_pillows(tmp_path, monkeypatch):
    f = ic.write(tmp_path, ic.saved(Image.new('RGB', (30, 30), (1, 2, 3)), 'PNG'))
    assert read_image(f, 8)[0, 0, 0]==1
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 899)
    with pytest.raises(DataError, match='30 x 30 pixels are more than 899'): read_image(f, 8)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None); read_image(f, 8)

def test_a_program_is_never_started(tmp_path, monkeypatch):
    "PostScript under an image's name would make Pillow start Ghostscript"
    import subprocess
    monkeypatch.setattr(subprocess, 'Popen', lambda *a, **kw: pytest.fail('a program was started'))
    for how in ('check_call', 'run', 'call'): monkeypatch.setattr(subprocess, how, lambda *a, **kw: pytest.fail('a program was started'))
    f = ic.write(tmp_path, ic.saved(Image.new('RGB', (9, 9)), 'EPS'))
    with pytest.raises(DataError, match='no image of these formats'): read_image(f, 8)

def test_names_are_shown_in_one_line(tmp_path):
    for name in ('a\nb.png', '\x1b[31mred.png', os.fsdecode(b'caf\xe9.png'), '\u2028.png'):
        (tmp_path/name).write_text('text')
        with pytest.raises(DataError) as e: read_image(tmp_path/name, 8)
        said = str(e.value); said.encode(); assert said.count(';')==2 and said.isprintable() and said.startswith(str(tmp_path)), said

def test_classes_that_differ_in_case(tmp_path):
    for c in ('Ant', 'ant', 'ANT'): (tmp_path/c).mkdir(); [(tmp_path/c/f'{i}.png').write_bytes(ic.PNG) for i in range(2)]
    assert load_folder(tmp_path).classes==('ANT', 'Ant', 'ant')
    for p in ('train', 'Train'):
        for c in 'ab': (tmp_path/'two'/p/c).mkdir(parents=True); (tmp_path/'two'/p/c/'0.png').write_bytes(ic.PNG)
    with pytest.raises(DataError, match='holds both Train and train'): load_folder(tmp_path/'two')

def test_duplicates_are_warned_of(tmp_path):
    for p in ('train', 'test'):
        for c in 'ab': (tmp_path/p/c).mkdir(parents=True); (tmp_path/p/c/'0.png').write_bytes(ic.PNG+p.encode()*(c=='b'))
    with pytest.warns(UserWarning, match=r'1 of 2 valid images are training images too.*test/a/0.png and train/a/0.png'): assert warn_duplicates(load_folder(tmp_path))==dict(valid=1)

def test_no_more_than_is_needed_is_read(tmp_path, monkeypatch):
    from infoutil import data, images
    for c in 'ab': (tmp_path/c).mkdir(); [(tmp_path/c/f'{i:02}.png').write_bytes(ic.PNG if i%3 else b'') for i in range(30)]
    d, read, real = load_folder(tmp_path), [], images.read_image
    monkeypatch.setattr(images, 'read_image', lambda p, s: read.append(os.path.relpath(p, tmp_path)) or real(p, s))
    files, bad = data.draw_readable(d, 1, 7)
    order = data.draw_candidates(d, 1, 99)
    assert len(files)==7 and sorted(read)==sorted((*files, *bad)) and set(read)==set(order[:len(read)])
