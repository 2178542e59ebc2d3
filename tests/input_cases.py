"""Hostile and odd input, made at random: images, folders, teachers and distilled sets.

Every case ends in an InfoUtilError that names the file and has three parts, or in a result that is right by construction: the makers below write files of which they know every pixel.

    python tests/input_cases.py --cases 10000 --seed 0

runs so many and prints a table; tests/test_input.py runs a fixed sample. A failure is run again alone by `--kind KIND --only NUMBER`."""
import argparse, collections, contextlib, io, itertools, json, os, random, shutil, signal, socket, stat, struct, sys, tempfile, time, traceback, warnings, zlib
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from infoutil.basics import InfoUtilError
from infoutil.data import draw_candidates, draw_readable, guess_size, load_folder, without
from infoutil.engine.outputs import json_text, sealed as with_seal
from infoutil.engine.seen_images import find_duplicates, fingerprints, sha256
from infoutil.fixtures.toys import toy_model
from infoutil.images import find_broken, read_image, read_images
from infoutil.loaders import ImageItems
from infoutil.view_labels import view_labels, ViewKey
from infoutil.labels import patch_labels
from infoutil.distilled_set import DistilledSet
from infoutil.teacher import load_teacher, save_record, save_teacher, Teacher, TrainingRecord

KINDS, SECONDS = {}, 20          # a case that takes longer hangs

def kind(weight):
    "Register a maker of cases; of all cases run, its share is `weight`"
    def register(fn): KINDS[fn.__name__] = (weight, fn); return fn
    return register

class Hang(BaseException): "A case did not end; no `except Exception` may swallow it"

@contextlib.contextmanager
def time_limit(seconds=SECONDS):
    def stop(*_): raise Hang(f'no end after {seconds} s')
    old = signal.signal(signal.SIGALRM, stop); signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, old)

@contextlib.contextmanager
def workplace():
    d = Path(tempfile.mkdtemp(prefix='infoutil-case-'))
    try: yield d
    finally: shutil.rmtree(d, ignore_errors=True)

def refused(e, *names):
    "Whether an error is a sentence of ours that names one of the files"
    s = str(e)
    assert s.count(';')>=2 and '\n' not in s, f'not three parts in a line: {s!r}'
    assert any(n in s for n in names), f'{names} not named: {s!r}'
    return 'refused'

def judge(fn, right, *names, must=None):
    "Run `fn`: refused by a sentence about one of `names`, or what `right` asserts"
    try: out = fn()
    except InfoUtilError as e: end = refused(e, *names)
    else: right(out); end = 'right'
    assert must in (None, end), f'{end}, and {must} was due'
    return end

def run_case(name, r):
    "One case: 'refused', 'right', or an exception that says what is wrong"
    with workplace() as d, time_limit(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return KINDS[name][1](r, d)

# --- images of which every pixel is known -------------------------------------------------------------------------------------

def chunk(tag, raw): return struct.pack('>I', len(raw))+tag+raw+struct.pack('>I', zlib.crc32(tag+raw))

def png_bytes(samples, bits, colour, extra=b'', size=None):
    "A PNG of unsigned samples (h, w, channels), written here so that no encoder of Pillow's can hide a mistake of its decoder"
    h, w, c = samples.shape
    rows = []
    for row in samples.reshape(h, w*c):
        if bits==16: raw = row.astype('>u2').tobytes()
        elif bits==8: raw = row.astype('u1').tobytes()
        else:
            b = ''.join(format(int(v), f'0{bits}b') for v in row)
            b += '0'*(-len(b)%8)
            raw = bytes(int(b[i:i+8], 2) for i in range(0, len(b), 8))
        rows.append(b'\0'+raw)
    w, h = size or (w, h)
    return (b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, colour, 0, 0, 0))+extra+chunk(b'IDAT', zlib.compress(b''.join(rows)))+chunk(b'IEND', b''))

def over_white(rgb, alpha): return rgb*alpha+255*(1-alpha)          # rgb 0 to 255, alpha 0 to 1

def some_png(r):
    "Bytes, the pixels (h, w, 3) as a person would see them over white, and what the eye would not notice"
    colour = r.choice((0, 2, 3, 4, 6))
    bits = r.choice({0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}[colour])
    w, h, n = r.randint(1, 9), r.randint(1, 9), {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    g, top, extra, alpha = np.random.default_rng(r.getrandbits(32)), 2**bits-1, b'', 1.
    a = g.integers(0, top+1, (h, w, n))
    if colour==3:
        table = g.integers(0, 256, (top+1, 3)); extra = chunk(b'PLTE', table.astype('u1').tobytes())
        seen = table[a[..., 0]].astype(float)
        if r.random()<0.5:
            k = r.randint(1, top+1); t = g.integers(0, 256, k) if r.random()<0.5 else np.where(np.arange(k)==r.randrange(k), 0, 255)
            extra += chunk(b'tRNS', t.astype('u1').tobytes()); alpha = np.append(t, [255]*(top+1-k))[a[..., :1]]/255
    else:
        seen = a[..., :(3 if n>2 else 1)]*(255/top)
        if n in (2, 4): alpha = a[..., -1:]/top
        elif r.random()<0.4:
            key = a[r.randrange(h), r.randrange(w)]; extra = chunk(b'tRNS', key.astype('>u2').tobytes()); alpha = 1.-(a==key).all(-1, keepdims=True)
    return png_bytes(a, bits, colour, extra), over_white(np.broadcast_to(seen, (h, w, 3)), alpha), 3

def saved(im, fmt, **kw):
    f = io.BytesIO(); im.save(f, fmt, **kw); return f.getvalue()

def some_saved(r):
    "A lossless file that Pillow wrote, of any mode"
    fmt, mode = r.choice([('PNG', m) for m in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16')]+[('TIFF', m) for m in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'F', 'CMYK')]+
                         [('GIF', m) for m in ('L', 'P', '1')]+[('BMP', m) for m in ('1', 'L', 'P', 'RGB')]+[('WEBP', m) for m in ('RGB', 'RGBA')]+[('PPM', m) for m in ('1', 'L', 'RGB', 'I;16')])
    w, h, g = r.randint(1, 9), r.randint(1, 9), np.random.default_rng(r.getrandbits(32))
    kw = dict(compression=r.choice((None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits'))) if fmt=='TIFF' and mode!='1' else dict(lossless=True, exact=True) if fmt=='WEBP' else {}
    u8 = lambda n: g.integers(0, 256, (h, w, n)).astype(np.uint8)
    if mode=='1': a = g.integers(0, 2, (h, w)).astype(bool); return saved(Image.fromarray(a), fmt), np.repeat(a[..., None]*255., 3, 2), 0.5
    if mode=='L': a = u8(1); return saved(Image.fromarray(a[..., 0]), fmt, **kw), np.repeat(a, 3, 2).astype(float), 0.5
    if mode=='P':
        a, table = u8(1), u8(256).reshape(-1)[:768]
        table = np.resize(table, 768); im = Image.fromarray(a[..., 0]); im.putpalette(table.astype(np.uint8).tobytes())
        return saved(im, fmt, **kw), table.reshape(256, 3)[a[..., 0]].astype(float), 0.5
    if mode=='I;16': a = g.integers(0, 65536, (h, w)).astype(np.uint16); return saved(Image.fromarray(a), fmt, **kw), np.repeat(a[..., None]/257, 3, 2), 1.01
    if mode=='F':
        a = g.random((h, w)).astype(np.float32)*r.choice((1, 255)); white = 1 if a.max()<=1 else 255
        return saved(Image.fromarray(a), fmt, **kw), np.repeat(a[..., None]/white*255, 3, 2), 0.51
    if mode=='CMYK': a = u8(4); rgb = (255-a[..., :3].astype(float))*(255-a[..., 3:].astype(float))/255; return saved(Image.fromarray(a, 'CMYK'), fmt, **kw), rgb, 1.01
    n = len(mode); a = u8(n)
    im = Image.merge(mode, [Image.fromarray(a[..., i]) for i in range(n)])
    rgb = a[..., :(3 if n>2 else 1)].astype(float)
    return saved(im, fmt, **kw), np.broadcast_to(over_white(rgb, a[..., -1:]/255.) if n in (2, 4) else rgb, (h, w, 3)), 2.01

def tiff_bytes(a, order='<', tile=None, planar=1, extra=(), size=None, rows=None):
    "A TIFF, plain strips or tiles, of (h, w, channels) uint8, uint16 or float32, in either byte order"
    h, w, c = a.shape
    bits, fmt = a.dtype.itemsize*8, 3 if a.dtype.kind=='f' else 1
    enc = lambda x: np.ascontiguousarray(x).astype(a.dtype.newbyteorder(order)).tobytes()
    planes = [a] if planar==1 else [a[..., i:i+1] for i in range(c)]
    if tile:
        pad = lambda p: np.pad(p, ((0, -h%tile), (0, -w%tile), (0, 0)))
        blocks = [enc(q[y:y+tile, x:x+tile]) for q in map(pad, planes) for y in range(0, q.shape[0], tile) for x in range(0, q.shape[1], tile)]
    else:
        rows = rows or h
        blocks = [enc(p[y:y+rows]) for p in planes for y in range(0, h, rows)]
    W, H = size or (w, h)
    tags = {256: (4, [W]), 257: (4, [H]), 258: (3, [bits]*c), 259: (3, [1]), 262: (3, [2 if c>2 else 1]), 277: (3, [c]), 284: (3, [planar]), 339: (3, [fmt]*c), **dict(extra)}
    if c in (2, 4): tags[338] = (3, [2])
    where, count = (324, 325) if tile else (273, 279)
    tags |= {322: (4, [tile]), 323: (4, [tile])} if tile else {278: (4, [rows])}
    tags[count] = (4, [len(b) for b in blocks]); tags[where] = (4, [0]*len(blocks))
    kinds = {3: 'H', 4: 'I'}
    end = 8+2+12*len(tags)+4
    long = {t:struct.calcsize(order+kinds[k]*len(v)) for t,(k,v) in tags.items()}
    data_at = end+sum(n+(n%2) for n in long.values() if n>4)
    tags[where] = (4, [data_at+sum(map(len, blocks[:i])) for i in range(len(blocks))])
    entries, far = b'', b''
    for t,(k,v) in sorted(tags.items()):
        raw = struct.pack(order+kinds[k]*len(v), *v)
        if len(raw)>4: entries += struct.pack(order+'HHII', t, k, len(v), end+len(far)); far += raw+b'\0'*(len(raw)%2)
        else: entries += struct.pack(order+'HHI', t, k, len(v))+raw.ljust(4, b'\0')
    return (b'II*\0' if order=='<' else b'MM\0*')+struct.pack(order+'I', 8)+struct.pack(order+'H', len(tags))+entries+b'\0'*4+far+b''.join(blocks)

def some_tiff(r):
    g, c, w, h = np.random.default_rng(r.getrandbits(32)), r.choice((1, 3, 4)), r.randint(1, 40), r.randint(1, 40)
    dtype = r.choice((np.uint8, np.uint16, np.float32)) if c==1 else np.uint8
    a = g.random((h, w, c)).astype(np.float32) if dtype==np.float32 else g.integers(0, 2**(8*dtype().itemsize), (h, w, c)).astype(dtype)
    raw = tiff_bytes(a, r.choice('<>'), r.choice((None, 16, 32)), r.choice((1, 2)) if c>1 else 1, rows=r.choice((None, 1, 3)))
    seen = a/{1: 1, 2: 257}.get(a.dtype.itemsize, 1/255)
    return raw, np.broadcast_to(over_white(seen[..., :3], seen[..., 3:]/255) if c==4 else seen, (h, w, 3)), 2.01

def turned(a, k):
    "Pixels (h, w, 3) as the EXIF standard says that orientation `k` is to be shown"
    return {1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2), 6: np.rot90(a, -1), 7: a[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(a, 1)}[k]

def some_turned(r):
    "A picture with an EXIF orientation"
    k, fmt, g = r.randint(1, 8), r.choice(('PNG', 'TIFF', 'WEBP', 'JPEG')), np.random.default_rng(r.getrandbits(32))
    a = g.integers(0, 256, (r.randint(1, 3), r.randint(1, 3), 3)).astype(np.uint8)
    if fmt=='JPEG': a = np.kron(a, np.ones((16, 16, 1), np.uint8))       # blocks, which JPEG keeps
    exif = Image.Exif(); exif[0x0112] = k
    kw = dict(JPEG=dict(quality=95, subsampling=0, progressive=r.random()<0.5), WEBP=dict(lossless=True), PNG={}, TIFF={})[fmt]
    return saved(Image.fromarray(a), fmt, exif=exif.tobytes(), **kw), turned(a, k).astype(float), 12 if fmt=='JPEG' else 0.5

def ycck(raw):
    "Mark the four channels of a JPEG as YCCK, which Pillow cannot write"
    i = raw.index(b'Adobe')
    return raw[:i+11]+b'\2'+raw[i+12:]

def some_jpeg(r):
    "One colour all over; grey, RGB, CMYK or YCCK"
    mode, side = r.choice(('L', 'RGB', 'CMYK', 'YCCK')), r.choice((1, 7, 8, 16, 33))
    v = [r.randrange(256) for _ in range(4)]
    kw = dict(quality=r.choice((90, 100)), progressive=r.random()<0.3, optimize=r.random()<0.3)
    n = {'L': 1, 'RGB': 3}.get(mode, 4)
    raw = saved(Image.new({'YCCK': 'CMYK'}.get(mode, mode), (side, side), tuple(v[:n]) if n>1 else v[0]), 'JPEG', **kw)
    if mode=='L': rgb = [v[0]]*3
    elif mode=='RGB': rgb = v[:3]
    else:
        stored = [255-c for c in v]                   # Adobe keeps ink inverted, and so does Pillow
        if mode=='YCCK':
            raw = ycck(raw); y, cb, cr = stored[:3]
            stored[:3] = [min(255, max(0, c)) for c in (255-(y+1.402*(cr-128)), 255-(y-0.344136*(cb-128)-0.714136*(cr-128)), 255-(y+1.772*(cb-128)))]
        rgb = [stored[i]*stored[3]/255 for i in range(3)]
    return raw, np.broadcast_to(np.array(rgb, float), (side, side, 3)), 8

def some_animation(r):
    "Several frames or pages, of which the first counts"
    fmt, g, n, w, h = r.choice(('GIF', 'WEBP', 'PNG', 'TIFF')), np.random.default_rng(r.getrandbits(32)), r.randint(2, 4), r.randint(1, 9), r.randint(1, 9)
    frames = g.integers(0, 256, (n, 1, 1, 3)).astype(np.uint8)*np.ones((1, h, w, 1), np.uint8)
    ims = [Image.fromarray(f) for f in frames]
    kw = dict(lossless=True) if fmt=='WEBP' else {} if fmt=='TIFF' else dict(duration=50, loop=0)
    return saved(ims[0], fmt, save_all=True, append_images=ims[1:], **kw), frames[0].astype(float), 2.01

def some_size(r):
    "As small and as long as an image gets"
    (w, h), fmt = r.choice(((1, 1), (1, 2), (20000, 10), (10, 20000), (3000, 1))), r.choice(('PNG', 'JPEG', 'BMP', 'TIFF', 'PPM'))
    a = np.zeros((h, w, 3), np.uint8); a[:, :w//3] = 255; a[:h//3] = 255; s = min(w, h)
    a[(h-s)//2:(h-s)//2+s, (w-s)//2:(w-s)//2+s] = colour = [r.randrange(256)]*3                # the square that is cut
    if fmt=='JPEG': a[:] = colour
    return saved(Image.fromarray(a), fmt, **({'quality': 95} if fmt=='JPEG' else {})), a.astype(float), 4 if fmt=='JPEG' else 0.5

IMAGES = (some_png, some_saved, some_tiff, some_turned, some_jpeg, some_animation, some_size)

def square(seen):
    "The central square, as `read_image` shows it at its own size"
    h, w, _ = seen.shape; s = min(h, w)
    return seen[(h-s)//2:(h-s)//2+s, (w-s)//2:(w-s)//2+s]

def is_picture(seen, tolerance):
    def right(x):
        want = square(seen)
        got = x.permute(1, 2, 0).numpy().astype(float)
        assert got.shape==want.shape and np.abs(got-want).max()<=tolerance, f'pixels differ by {np.abs(got-want).max():.1f} (shapes {got.shape}, {want.shape})'
    return right

def write(d, raw, r=None, name='x'):
    f = d/(name+(r.choice(('.png', '.jpg', '.gif', '.tiff', '.webp', '.JPEG')) if r else '.png'))       # the name does not say what is inside
    f.write_bytes(raw); return f

def image_case(make, must='right'):
    def run(r, d):
        raw, seen, tol = make(r)
        f = write(d, raw, r)
        return judge(lambda: read_image(f, min(seen.shape[:2])), is_picture(seen, tol), f.name, must=must)
    run.__name__ = make.__name__.replace('some_', 'image: '); return run

for make, share in zip(IMAGES, (14, 12, 8, 8, 8, 4, 1)): kind(share)(image_case(make))

@kind(14)
def image_truncated(r, d):
    "Cut at any byte: refused, or the same pixels as the whole"
    raw, seen, _ = r.choice(IMAGES[:6])(r)
    f = write(d, raw); s = min(seen.shape[:2]); whole = read_image(f, s)
    f.write_bytes(raw[:r.randrange(len(raw))])
    def right(x): assert torch.equal(x, whole), 'other pixels'
    end = judge(lambda: read_image(f, s), right, f.name)
    assert (f.name in find_broken(d, [f.name]))==(end=='refused')
    return end

@kind(14)
def image_altered(r, d):
    "Some bytes changed: an image format need not notice, but nothing else may happen"
    raw = bytearray(r.choice(IMAGES[:6])(r)[0])
    for _ in range(r.choice((1, 1, 2, 8))): raw[r.randrange(len(raw))] = r.randrange(256)
    f = write(d, bytes(raw), r)
    def right(x): assert x.shape==(3, 8, 8) and x.dtype==torch.uint8
    return judge(lambda: read_image(f, 8), right, f.name)

@kind(3)
def image_of_nothing(r, d):
    "Text, other formats and noise under an image's name"
    raw = r.choice((lambda: b'', lambda: b'\0'*r.randint(1, 99), lambda: r.randbytes(r.randint(1, 300)), lambda: 'naïve text\n'.encode()*9, lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
                    lambda: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n', lambda: b'<html></html>', lambda: b'PK\3\4'+r.randbytes(60), lambda: b'%PDF-1.7\n',
                    lambda: saved(Image.new('RGB', (9, 9)), 'EPS'), lambda: saved(Image.new('RGB', (16, 16)), 'ICO'), lambda: saved(Image.new('RGB', (9, 9)), 'PCX'), lambda: b'\x89PNG\r\n\x1a\n', lambda: b'\xff\xd8\xff\xe0'))()
    f = write(d, raw, r)
    return judge(lambda: read_image(f, 8), lambda x: None, f.name, must='refused')

@kind(2)
def image_not_finite(r, d):
    a = np.random.default_rng(r.getrandbits(32)).random((5, 5, 1)).astype(np.float32); a[r.randrange(5), r.randrange(5)] = r.choice((np.nan, np.inf, -np.inf))
    f = write(d, tiff_bytes(a, r.choice('<>')))
    return judge(lambda: read_image(f, 5), lambda x: None, f.name, must='refused')

# --- bombs -------------------------------------------------------------------------------------------------------------------

def zeros(n):
    "n zero bytes, compressed a piece at a time"
    z = zlib.compressobj(9); out = b''.join(z.compress(b'\0'*2**20) for _ in range(n>>20))
    return out+z.flush()

_ZEROS = {}
def packed(megabytes): return _ZEROS.setdefault(megabytes, zeros(megabytes<<20))

def memory(field):
    with open('/proc/self/status') as f: return next(int(l.split()[1]) for l in f if l.startswith(field))/1024

def grown(fn):
    "What `fn` makes of resident memory at its peak, in MiB"
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')
    before = memory('VmRSS')
    out = fn()
    return out, memory('VmHWM')-before

def some_bomb(r):
    w, h = r.choice(((100000, 100000), (10000, 9000), (12000, 12000), (65000, 2000), (50000, 50000), (2**31-1, 2**31-1), (30000, 30000)))
    one = np.zeros((1, 1, 1), int)
    def gif(): return b'GIF89a'+struct.pack('<HHBBB', min(w, 65535), min(max(h, 20000), 65535), 0x80, 0, 0)+b'\0\0\0\xff\xff\xff'+saved(Image.new('L', (1, 1)), 'GIF')[781:]
    def webp():
        raw = bytearray(saved(Image.new('RGBA', (2, 2), (1, 2, 3, 4)), 'WEBP', save_all=True, append_images=[Image.new('RGBA', (2, 2), (9, 2, 3, 200))]))
        i = raw.index(b'VP8X')+12; raw[i:i+6] = struct.pack('<I', 16382)[:3]*2
        return bytes(raw)
    def jpeg():
        raw = bytearray(saved(Image.new('RGB', (8, 8)), 'JPEG', progressive=r.random()<0.5)); i = raw.index(b'\xff\xc0') if b'\xff\xc0' in raw else raw.index(b'\xff\xc2')
        raw[i+5:i+9] = struct.pack('>HH', 65000, r.choice((1500, 65000))); return bytes(raw)
    def text(tag, head): return lambda: png_bytes(np.zeros((2, 2, 3), int), 8, 2, chunk(tag, head+packed(64)))
    makers = dict(png=lambda: png_bytes(one, 8, 0, size=(w, h)), png_whole=lambda: b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 16000, 8000, 8, 0, 0, 0, 0))+chunk(b'IDAT', packed(128))+chunk(b'IEND', b''),
                  tiff=lambda: tiff_bytes(one.astype(np.uint8), r.choice('<>'), size=(w, h)), gif=gif, webp=webp, jpeg=jpeg, ppm=lambda: b'P6 %d %d 255\n'%(w, h), bmp=lambda: b'BM'+struct.pack('<IHHIIiiHHIIiiII', 99, 0, 0, 54, 40, w, h, 1, 24, 0, 0, 0, 0, 0, 0),
                  ztxt=text(b'zTXt', b'k\0\0'), itxt=text(b'iTXt', b'k\0\1\0\0\0'), iccp=text(b'iCCP', b'k\0\0'))
    name = r.choice(sorted(makers))
    return name, makers[name]()

@kind(3)
def image_bomb(r, d):
    "Beyond Pillow's limit, where it warns and where it raises: refused, and never unpacked"
    name, raw = some_bomb(r)
    f = write(d, raw)
    end, mib = grown(lambda: judge(lambda: read_image(f, 8), lambda x: None, f.name, must='refused'))
    assert mib<96, f'{name}: {mib:.0f} MiB'
    with contextlib.suppress(InfoUtilError): guess_size(_folder_of(d/'set', raw))
    return end

def _folder_of(root, raw):
    for c in 'ab': (root/c).mkdir(parents=True); [(root/c/f'{i}.png').write_bytes(raw) for i in range(2)]
    return load_folder(root)

# --- names and places --------------------------------------------------------------------------------------------------------

PNG = png_bytes(np.full((4, 4, 3), 7), 8, 2)
def fresh_png(r): return png_bytes(np.random.default_rng(r.getrandbits(32)).integers(0, 256, (4, 4, 3)), 8, 2)
SPECIALS = ('pipe', 'socket', 'device', 'random', 'dangling', 'circle', 'to pipe', 'to device', 'folder link', 'gone', 'folder')

def put_special(f, what):
    "Put something that is no file at `f`; False where this machine cannot"
    other = f.with_name('other'+f.name[-3:])
    if what in ('pipe', 'to pipe'): os.mkfifo(f if what=='pipe' else other)
    if what in ('device', 'random', 'to device'):
        try: os.mknod(f if what!='to device' else other, 0o666|stat.S_IFCHR, os.makedev(1, 5 if what!='random' else 8))       # /dev/zero, /dev/random
        except PermissionError: return False
    if what=='socket': s = socket.socket(socket.AF_UNIX); s.bind(str(f)); s.close()
    if what=='dangling': f.symlink_to('nowhere')
    if what=='circle': f.symlink_to(other); other.symlink_to(f)
    if what.startswith('to '): f.symlink_to(other.name)
    if what=='folder link': f.symlink_to('..')
    if what=='folder': f.mkdir()
    return True

@kind(8)
def file_of_no_kind(r, d):
    "Pipes, sockets, devices, links to nowhere and in a circle"
    for c in 'ab': (d/c).mkdir(); [(d/c/f'{i}.png').write_bytes(PNG) for i in range(3)]
    what, f = r.choice(SPECIALS), d/'a'/'special.png'
    if not put_special(f, what): return 'refused'
    end = judge(lambda: read_image(f, 4), lambda x: None, f.name, must='refused')
    data = load_folder(d, valid_frac=0.5)
    there = what not in ('folder', 'folder link', 'gone')
    inside = [p for s in (data.train, data.valid) for p in s.files if p.endswith('special.png')]
    assert len(inside)==int(there), f'listed {inside}'
    bad = find_broken(d, data.train.files+data.valid.files, workers=r.choice((1, 3)))
    if what.split()[-1] in ('pipe', 'device', 'random'): assert all('a pipe or a device' in why for why in bad.values())
    assert list(bad)==inside and len(without(data.train, bad).files)+len(without(data.valid, bad).files)==6
    ImageItems(without(data.train, bad), 4).check(workers=1)
    for fn in (lambda: ImageItems(data.train, 4).check(), lambda: ImageItems(data.train, 4, keep=0).check(), lambda: fingerprints(data.train.paths()), lambda: find_duplicates(data)):
        judge(fn, lambda x: None, f.name)
    return end

NAMES = ('0', 'ant', 'Ant', 'ANT', 'häuser', 'a b', 'a;b', "o'neil", 'x\ny', 'tab\there', '\x1b[31m', '日本', '..a', 'a'*200, '-rf', '$HOME', '%s', '{x}', 'con', os.fsdecode(b'\xff\xfe'), os.fsdecode(b'caf\xe9'), 'train', 'test', '\u2028')

def shown(name): return name.encode('unicode_escape').decode() if not name.isprintable() else name

@kind(10)
def folder_tree(r, d):
    "Layouts, odd names and rubbish: exactly the visible images of every class, or a sentence"
    root, parts = d/'set', r.choice(([''], ['train'], ['train', 'test'], ['train', 'val', 'test'], ['Train', 'Valid']))
    classes = r.sample(NAMES[:-3] if parts==[''] else NAMES, r.choice((1, 2, 2, 3, 4)))
    empty = [c for c in classes if r.random()<0.04]
    listed = {p:{c:set() for c in classes if not c.startswith('.')} for p in parts}
    for p,c in itertools.product(parts, classes):
        (root/p/c).mkdir(parents=True)
        for i in range(0 if c in empty else r.randint(2, 4)):
            name = r.choice(NAMES)+f'{i}'+r.choice(('.png', '.JPG', '.tiff', '.txt', '')) if i>1 else f'{i}.png'
            sub = r.choice(('', '', '', 'sub/', '.hidden/', '__MACOSX/'))if i>1 else ''
            (root/p/c/sub).mkdir(exist_ok=True); (root/p/c/sub/name).write_bytes(PNG)
            seen = name.lower().endswith(('.png', '.jpg', '.tiff')) and not name.startswith('.') and sub in ('', 'sub/')
            if seen and c in listed[p]: listed[p][c].add(os.path.join(p, c, sub, name))
        for junk in ('Thumbs.db', '.DS_Store', '._0.png', 'desktop.ini', '.png'):
            if r.random()<0.3: (root/p/c/junk).write_bytes(b'junk')
    for junk in ('.git', '.ipynb_checkpoints', '__MACOSX'):
        if r.random()<0.3: (root/parts[0]/junk).mkdir(); (root/parts[0]/junk/'x.png').write_bytes(PNG)
    loop = r.random()<0.15
    if loop:
        to = r.choice(('.', '..', classes[0])); (root/parts[0]/'zz-loop').symlink_to(to)
    inner = r.random()<0.15 and classes[0] in listed[parts[0]]
    if inner: (root/parts[0]/classes[0]/'loop').symlink_to(r.choice(('.', '..', '../..')))     # walked into, it would never end
    odd = loop or len(listed[parts[0]])<2 or any(not fs for p in listed.values() for fs in p.values())
    def right(data):
        assert data.classes==tuple(sorted(listed[parts[0]])), data.classes
        both = [data.train, data.valid]+([data.test] if data.test is not data.valid else [])
        want = set().union(*(fs for p in listed.values() for fs in p.values()))
        assert set(itertools.chain(*(s.files for s in both)))=={os.path.normpath(f) for f in want}
        for s in both:
            for f,l in zip(s.files, s.labels): assert data.classes[l] in Path(f).parts
        assert not find_broken(root, data.train.files, workers=1)
    end = judge(lambda: load_folder(root), right, root.name, *map(shown, classes), must='refused' if odd else 'right')
    if end=='right' and inner: assert len(load_folder(root).train)
    return end

def unprivileged(fn):
    "`fn()` in a process that may not read everything; its exit status says whether it went well"
    if os.geteuid(): return fn()
    if (pid:=os.fork())==0:
        code = 1
        try: os.setgroups([]); os.setgid(65534); os.setuid(65534); fn(); code = 0
        except BaseException: traceback.print_exc()
        finally: os._exit(code)
    assert os.waitpid(pid, 0)[1]==0, 'failed in the process without privileges'

@kind(2)
def no_permission(r, d):
    "Files and folders that may not be read"
    os.chmod(d, 0o755)
    for c in 'ab': (d/c/'sub').mkdir(parents=True); [(d/c/f'{i}.png').write_bytes(PNG) for i in range(4)]; (d/c/'sub/9.png').write_bytes(PNG)
    p = d/r.choice(('a/2.png', 'a', 'a/sub', '.'))
    mode = r.choice((0, 0o400, 0o100)) if p.is_dir() else 0
    os.chown(d, 65534, 65534) if not os.geteuid() and p==d else None
    os.chmod(p, mode)
    def check():
        try: data = load_folder(d)
        except InfoUtilError as e: return refused(e, p.name, d.name)
        bad = find_broken(d, data.train.files+data.valid.files, workers=1)
        assert sum('9.png' in f for f in data.train.files+data.valid.files)==2, 'an unreadable folder was passed over in silence'
        for f,why in bad.items(): assert 'Permission denied' in why; judge(lambda: read_image(d/f, 4), lambda x: None, Path(f).name, must='refused')
        assert bad or mode==0o400 or mode==0o100
    try: unprivileged(check)
    finally: os.chmod(d, 0o755); os.chmod(p, 0o755)
    return 'refused'

@kind(5)
def changed_meanwhile(r, d):
    "A file that changes between listing and reading"
    for c in 'ab': (d/c).mkdir(); [(d/c/f'{i}.png').write_bytes(PNG) for i in range(4)]
    data = load_folder(d); f = d/r.choice(data.train.files)
    what = r.choice(('gone', 'text', 'cut', 'other', 'folder', 'pipe', 'class gone'))
    if what!='class gone': f.unlink()
    if what=='text': f.write_text('text')
    if what=='cut': f.write_bytes(PNG[:r.randrange(50)])
    if what=='other': f.write_bytes(saved(Image.new('RGB', (9, 5), (1, 2, 3)), 'JPEG'))
    if what in ('folder', 'pipe'): put_special(f, what)
    if what=='class gone': shutil.rmtree(f.parent)
    names = [f.name] if what!='class gone' else [f.parent.name]
    right = lambda x: None
    for fn in (lambda: fingerprints(data.train.paths(), 1), lambda: find_duplicates(data), lambda: ImageItems(data.train, 4, keep=0).check(), lambda: draw_readable(data, 0, 3)): judge(fn, right, *names)
    return judge(lambda: read_images(data.train.paths(), 4, workers=r.choice((1, 3))), right, *names, must='right' if what=='other' else 'refused')

@kind(5)
def draw_around_broken(r, d):
    "`draw_readable` and `without` beside a plain reading of their rules"
    n, want = r.randint(1, 8), r.randint(1, 9)
    for c in 'ab': (d/c).mkdir(); [(d/c/f'{i}.png').write_bytes(PNG) for i in range(n+1)]
    data, seed = load_folder(d), r.randrange(5)
    bad = {f for f in data.train.files if r.random()<0.4}
    for f in bad: (d/f).write_bytes(r.choice((b'', PNG[:40], b'text')))
    order = draw_candidates(data, 0, 99, seed)
    good = [f for f in order if f not in bad][:want]
    last = order.index(good[-1])+1 if len(good)==want else len(order)
    def right(x): assert x[0]==tuple(good) and list(x[1])==[f for f in order[:last] if f in bad]
    end = judge(lambda: draw_readable(data, 0, want, seed, workers=r.choice((1, 2))), right, 'a', must='right' if good else 'refused')
    whole = any(bad.issuperset(data.train.of_class(c)) for c in (0, 1))
    judge(lambda: without(data.train, bad), lambda s: [None for f,l in zip(s.files, s.labels) if f in bad or 'ab'[l]!=f[0]]==[] or 1/0, 'a', 'b', must='refused' if whole else 'right')
    return end

@kind(4)
def duplicates(r, d):
    "Copies across parts, beside a comparison of all bytes"
    pool = [fresh_png(r) for _ in range(4)]
    big = [bytes(5000)+bytes([i])+bytes(5000) for i in range(2)]                     # equal length and ends
    for p,c in itertools.product(('train', 'val', 'test'), 'ab'):
        (d/p/c).mkdir(parents=True)
        for i in range(r.randint(1, 3)): (d/p/c/f'{i}.png').write_bytes(r.choice(pool+big+[fresh_png(r)]))
    data, raw = load_folder(d), {}
    for s in (data.train, data.valid, data.test): raw |= {f:(d/f).read_bytes() for f in s.files}
    mine = {raw[f] for f in data.train.files}
    found = find_duplicates(data, workers=r.choice((1, 2)))
    for name,split in (('valid', data.valid), ('test', data.test)):
        assert set(found[name])=={f for f in split.files if raw[f] in mine}
        assert all(raw[f]==raw[m] and m in data.train.files for f,m in found[name].items())
    return 'right'

# --- teachers and distilled sets ---------------------------------------------------------------------------------------------

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
def net(): return toy_model(2, width=2)

class Kept:
    "A teacher and a distilled set, made once and copied for every case"
    folder = None
    @classmethod
    def at(cls):
        if cls.folder is None:
            cls.folder = Path(tempfile.mkdtemp(prefix='infoutil-kept-'))
            t = Teacher(net(), 'toy', ('ant', 'bee'), 8, MEAN, STD, 3, 0.75)
            t = save_teacher(t, cls.folder/'teacher')
            save_record(TrainingRecord(('train/ant/0.png', 'train/bee/1.png'), torch.tensor([0, 2]), torch.tensor([5, 9]), (dict(epoch=0, train_loss=1.5, valid_loss=1.25, accuracy=0.5),), 1.5, 1000), cls.folder/'teacher')
            x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
            views = view_labels(t.model, x, ViewKey(n=2, size=8, epochs=1, batch_size=2), MEAN, STD)
            ds = DistilledSet(x, torch.tensor([0, 1]), t.classes, torch.tensor([[[1., 2.]], [[3., -4.]]]), t, dict(method='toy', seed=0, seconds=1.5), [dict(image=i, tile=0, source=f'train/{c}/0.png', box=[0, 0, 8, 8]) for i,c in enumerate(t.classes)], views)
            ds.save(cls.folder/'set')
            cls.teacher, cls.set = cls.load_teacher(cls.folder/'teacher'), cls.load_set(cls.folder/'set')
        return cls.folder
    load_teacher = staticmethod(lambda p: load_teacher(p, device='cpu', model=net()))
    load_set     = staticmethod(lambda p: DistilledSet.load(p, model=net()))

def same_state(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def same_teacher(a, b):
    assert same_state(a.model.state_dict(), b.model.state_dict()), 'other weights'
    for k in ('arch', 'classes', 'size', 'mean', 'std', 'epoch', 'accuracy', 'sha256', 'held_out'): assert getattr(a, k)==getattr(b, k), f'other {k}: {getattr(a, k)!r}'
    assert (a.record is None)==(b.record is None)
    if a.record is None: return
    for k in ('files', 'curve', 'seconds', 'peak_bytes'): assert getattr(a.record, k)==getattr(b.record, k), f'record: other {k}'
    assert torch.equal(a.record.forgetting, b.record.forgetting) and torch.equal(a.record.prints, b.record.prints)

def same_set(a, b):
    for k in ('images', 'labels', 'y'): assert torch.equal(getattr(a, k), getattr(b, k)), f'other {k}'
    for k in ('classes', 'meta', 'provenance'): assert getattr(a, k)==getattr(b, k), f'other {k}: {getattr(a, k)}'
    assert a.views.recipe()==b.views.recipe() and same_state(a.views.tensors(), b.views.tensors()), 'other views'
    same_teacher(a.teacher, b.teacher)

def damage(raw, r):
    "Cut at any byte, or change one or more"
    if r.random()<0.4: return raw[:r.randrange(len(raw))]
    out = bytearray(raw)
    for _ in range(r.choice((1, 1, 1, 3))):
        i = r.randrange(len(out)); out[i] = r.choice([v for v in (out[i]^(1<<r.randrange(8)), r.randrange(256), out[i]+1&255) if v!=out[i]])
    if r.random()<0.1: out += r.randbytes(r.randint(1, 9))
    return bytes(out)

def damaged(r, d, part, load, same):
    shutil.copytree(Kept.at()/part, d/part)
    files = sorted(p for p in (d/part).rglob('*') if p.is_file())
    f = r.choice(files); raw = f.read_bytes()
    want, lost = getattr(Kept, part), r.random()<0.05
    if lost: f.unlink()
    else: f.write_bytes(damage(raw, r))
    if lost and f.name=='run.json' and part=='set': want = replace(want, meta={k:v for k,v in want.meta.items() if k!='seconds'})      # a set is whole without its times
    if lost and f.name=='run.json' and part=='teacher': want = replace(want, record=replace(want.record, seconds=0., peak_bytes=None))
    if lost and f.name=='training.json': want = replace(want, record=None)                                                             # and a teacher without a record
    return judge(lambda: load(d/part), lambda x: same(x, want), f.name, part)

@kind(14)
def teacher_damaged(r, d):
    "A teacher's files, cut or altered"
    return damaged(r, d, 'teacher', Kept.load_teacher, same_teacher)

@kind(14)
def set_damaged(r, d):
    "A distilled set's files, cut or altered"
    return damaged(r, d, 'set', Kept.load_set, same_set)

@kind(1)
def kept_file_of_no_kind(r, d):
    "A pipe, a folder or a link to nowhere in the place of a file of a teacher or a set"
    part = r.choice(('teacher', 'set'))
    shutil.copytree(Kept.at()/part, d/part)
    f = d/part/r.choice(('converged.json', 'converged.safetensors', 'training.json', 'training.safetensors') if part=='teacher' else ('infoutil.json', 'provenance.jsonl', 'train/00000_ant/00000.png', 'labels/patch_logits.safetensors', 'teacher/label.json', 'teacher/label.safetensors'))
    f.unlink(); put_special(f, r.choice(('pipe', 'pipe', 'folder', 'dangling', 'circle', 'socket')))
    with time_limit(2): return judge(lambda: getattr(Kept, f'load_{part}')(d/part), lambda x: f.name=='training.json' and getattr(x, 'record', 0) is None or 1/0, f.name, part)

DEEP = '['*100000+']'*100000
VALUES = ('null', 'true', 'false', '0', '-1', '1', '2', '1e999', '-1e999', 'NaN', 'Infinity', '1'*30, '9'*5000, '1.5', '""', '"x"', '"../../etc/passwd"', '"/etc/passwd"', '"\\ud800"', '[]', '{}', '[1]', '["a", 1]', '[[]]', '[null, null]', '{"a": 1}', '{"": {}}',
          '[1, 2, 3]', '["x", "y"]', '[NaN, 1, 1]', '[true, true, true]', '[1e308, 1e308, 1e308]', '[0, 0, 0]', '[-1, 1, 1]', DEEP, '"'+'x'*300+'"', '10000000000000', '100000')

def json_paths(obj, at=()):
    "Where an object has values"
    for k,v in (obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, list) else ()): yield (*at, k); yield from json_paths(v, (*at, k))

def hostile_json(r, raw, seal=None):
    "JSON that is a lie: one value replaced, doubled or removed, with a seal that fits where `seal` can make one"
    m = json.loads(raw)
    how = r.choice(('value', 'value', 'value', 'remove', 'double', 'other', 'root'))
    if how=='root': return r.choice(VALUES)
    if how=='double':
        k = r.choice(list(m)); return json.dumps(m)[:-1]+f', {json.dumps(k)}: {r.choice(VALUES)}}}'
    if how=='other': m[r.choice(('extra', '__class__', 'schema'))] = r.choice((1, None, 99, '1', [1]))
    else:
        *way, last = r.choice(list(json_paths(m))); o = m
        for k in way: o = o[k]
        if how=='remove': o.pop(last)
        else: o[last] = '@@here@@'
    value = r.choice(VALUES)
    text = json.dumps(m).replace('"@@here@@"', value)
    if seal is None: return text
    try: return seal(json.loads(text))
    except (ValueError, RecursionError): return text           # JSON does not know it, and no seal can be made

def teacher_sealed(m):
    "The JSON of a teacher with a seal that fits, where it has one"
    return json.dumps(with_seal({k:v for k,v in m.items() if k!='seal'}) if isinstance(m, dict) else m)

@kind(7)
def teacher_json_hostile(r, d):
    "The JSON of a teacher or of its record with anything in any field: a sentence, or a teacher of the same weights"
    shutil.copytree(Kept.at()/'teacher', d/'teacher')
    f = d/'teacher'/r.choice(('converged.json', 'training.json'))
    f.write_text(hostile_json(r, f.read_text(), r.choice((None, teacher_sealed))))
    def right(t):
        assert same_state(t.model.state_dict(), Kept.teacher.model.state_dict()) and len(t.classes)==2 and all(isinstance(c, str) for c in t.classes)
        t.normalize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)); repr(t); repr(t.record)
    return judge(lambda: Kept.load_teacher(d/'teacher'), right, f.name, 'teacher')

def sealed(m):
    "The manifest of a set with a seal that fits"
    m.pop('digest', None)
    return json_text(with_seal(m, 'digest'), indent=1)

@kind(8)
def manifest_hostile(r, d):
    "A manifest that lies and whose seal fits: a sentence, or a set of the same pixels"
    shutil.copytree(Kept.at()/'set', d/'set')
    f = d/'set'/r.choice(('infoutil.json', 'infoutil.json', 'run.json'))
    f.write_text(hostile_json(r, f.read_text(), sealed))
    def right(ds): assert torch.equal(ds.images, Kept.set.images) and len(ds.classes)==2; repr(ds); ds.mean; ds.factor
    return judge(lambda: Kept.load_set(d/'set'), right, f.name, 'set')

def odd_tensor(r, v):
    "A tensor that does not belong where `v` was"
    v = torch.atleast_1d(v)
    return r.choice((v.double(), v.flatten(), v[:0], torch.full_like(v, float('nan') if v.is_floating_point() else -1), torch.cat((v, v))))

@kind(3)
def listed_file_hostile(r, d):
    "A file of a set that is not what it was, with a manifest that was made to fit"
    shutil.copytree(Kept.at()/'set', d/'set')
    m = json.loads((d/'set/infoutil.json').read_text())
    name = r.choice(sorted(m['files'])); f = d/'set'/name
    if f.suffix in ('.json', '.jsonl') and r.random()<0.5: f.write_text(r.choice(VALUES) if r.random()<0.3 else hostile_json(r, f.read_text().split('\n')[0] if f.suffix=='.jsonl' else f.read_text()))
    elif r.random()<0.2: f.write_bytes(r.choice((b'', PNG, saved(Image.new('L', (8, 8)), 'PNG'), saved(Image.new('RGB', (8, 8)), 'JPEG'), b'text', b'\x80\x04N.', struct.pack('<Q', 2**60)+b'{}', struct.pack('<Q', 2)+b'{}')))
    elif f.suffix=='.safetensors' and r.random()<0.4: save_file({k:odd_tensor(r, v) for k,v in load_file(f).items()}, f)
    else: f.write_bytes(damage(f.read_bytes(), r))
    m['files'][name] = sha256(f); (d/'set/infoutil.json').write_text(sealed(m))
    def right(ds): assert ds.images.shape==(2, 3, 8, 8) and len(ds.classes)==2; repr(ds)
    return judge(lambda: Kept.load_set(d/'set'), right, f.name, name, 'set')

@kind(3)
def teacher_weights_hostile(r, d):
    "NaN, infinity, other shapes, names or types among the weights, with a digest that fits"
    shutil.copytree(Kept.at()/'teacher', d/'teacher')
    f, j = d/'teacher/converged.safetensors', d/'teacher/converged.json'
    w = load_file(f); k = r.choice([k for k,v in w.items() if v.is_floating_point()]); how = r.choice(('nan', 'inf', 'shape', 'lost', 'more', 'type', 'empty'))
    if how in ('nan', 'inf'): w[k].view(-1)[r.randrange(w[k].numel())] = float(how)*r.choice((1, -1))
    if how=='shape': w[k] = torch.cat((w[k], w[k]))
    if how=='lost': w.pop(k)
    if how=='more': w['more'] = torch.zeros(1)
    if how=='type': w[k] = w[k].double()
    if how=='empty': w = {}
    save_file(w, f); m = json.loads(j.read_text()); m['sha256'] = sha256(f); m.pop('digest', None)
    j.write_text(teacher_sealed(m))
    def right(t): assert how=='type' and same_state(t.model.state_dict(), Kept.teacher.model.state_dict())
    return judge(lambda: Kept.load_teacher(d/'teacher'), right, f.name, j.name, must='refused' if how!='type' else None)

@kind(1)
def teacher_of_others(r, d):
    "A teacher of other classes or of another size"
    p = Kept.at()/'teacher'
    kw = r.choice((dict(classes=('bee', 'ant')), dict(classes=('ant',)), dict(classes=('ant', 'bee', 'cow')), dict(classes=('Ant', 'bee')), dict(size=16), dict(which='early'), dict(which='../set/teacher/label/x')))
    return judge(lambda: load_teacher(p, **{'device': 'cpu', 'model': net(), **kw}), lambda t: None, 'teacher', must='refused')

# --- running them ------------------------------------------------------------------------------------------------------------

def run(cases, seed, only=None, kinds=None, show=print):
    "Run so many cases, shared out by weight; the table's rows and the failures"
    names = kinds or list(KINDS)
    total, rows, failures = sum(KINDS[k][0] for k in names), [], []
    for k in names:
        n, ends, t = max(1, round(cases*KINDS[k][0]/total)), collections.Counter(), time.perf_counter()
        for i in ([only] if only is not None else range(n)):
            try: ends[run_case(k, random.Random(f'{seed} {k} {i}'))] += 1
            except (Exception, Hang) as e:
                ends['failed'] += 1; failures.append((k, i, e))
        rows.append((k, sum(ends.values()), ends['refused'], ends['right'], ends['failed'], time.perf_counter()-t))
        show('%-26s %6d cases  %6d refused  %6d right  %4d failed  %6.1f s'%rows[-1])
    return rows, failures

def main():
    p = argparse.ArgumentParser(description='Hostile and odd input, made at random')
    p.add_argument('--cases', type=int, default=10000); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--kind', choices=list(KINDS), action='append'); p.add_argument('--only', type=int)
    a = p.parse_args()
    torch.set_num_threads(1)
    rows, failures = run(a.cases, a.seed, a.only, a.kind)
    print('%-26s %6d cases  %6d refused  %6d right  %4d failed  %6.1f s'%('all', *[sum(c) for c in list(zip(*rows))[1:]]))
    said = collections.Counter()
    for k,i,e in failures:
        said[k, type(e).__name__, str(e)[:40]] += 1
        if said[k, type(e).__name__, str(e)[:40]]<=(2 if a.only is None else 99): print(f'--kind {k!r} --seed {a.seed} --only {i}: {type(e).__name__}: {str(e)[:300]}')
    if a.only is not None and failures: traceback.print_exception(failures[0][2])
    return int(bool(failures))

if __name__=='__main__': sys.exit(main())
