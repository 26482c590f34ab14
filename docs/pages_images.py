"""docs/images.md: the limits and budgets come from the code, the rest is written here."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sightline.config import FetchPolicy, ImageLimits, PictureSize
from sightline.images.identify import ACCEPTED

HERE = Path(__file__).parent
OPTIONS = {
    (ImageLimits, "cache_bytes"): "`--image-cache-mib`",
    (PictureSize, "detail"): "`--detail`, for all models `--image-detail`",
    (PictureSize, "max_pixels"): "`--max-pixels`, `--image-max-pixels`",
    (PictureSize, "min_pixels"): "`--min-pixels`, `--image-min-pixels`",
    (FetchPolicy, "any_public"): "`--fetch any-public`",
    (FetchPolicy, "allow_hosts"): "`--fetch HOST,...`",
    (FetchPolicy, "allow_networks"): "`--fetch-network CIDR`",
}
"""Settings that `sightline serve` has an option for."""


def images_page() -> str:
    return PAGE.format(
        accepted=ACCEPTED,
        limits=settings_table(ImageLimits),
        sizes=settings_table(PictureSize),
        fetch=settings_table(FetchPolicy),
        speed=speed_table(),
    )


def settings_table(struct: type[msgspec.Struct]) -> str:
    """A row for each field of a settings struct: its default, its option, its docstring."""
    meanings = dict(_meanings(struct))
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for field in msgspec.structs.fields(struct):
        option = OPTIONS.get((struct, field.name))
        name = f"`{field.name}`" + (f"<br>{option}" if option else "")
        rows.append(f"| {name} | {_shown(field.name, field.default)} | {meanings.get(field.name, '')} |")
    return "\n".join(rows)


def speed_table() -> str:
    """What `make bench-images` wrote."""
    run = json.loads((HERE / "bench-images.json").read_text())
    head = ["| file | ours, ms | Pillow, ms | ratio | dB | peak MiB |", "|---|---|---|---|---|---|"]
    rows = [
        f"| {row['file']} | {row['ours_ms']:.0f} | {row['pillow_ms']:.0f} | {row['ratio']:.2f} | {row['psnr_db']:.1f} | "
        f"{row['peak_mib']:.0f} |"
        for row in run["rows"]
    ]
    return "\n".join(head + rows) + f"\n\nBase64 of a body of 5 MB: {run['base64_ms']:.2f} ms."


def _meanings(struct: type) -> Iterator[tuple[str, str]]:
    """The docstrings under a class's fields."""
    (body,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            yield field.target.id, " ".join(str(text.value.value).split())


def _shown(name: str, default: object) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int) and name.endswith("_bytes"):
        return f"{default >> 20} MiB"
    if isinstance(default, float):
        return f"{default:g} s"
    return f"{default:,}" if isinstance(default, int) else str(default)


PAGE = """\
# Pictures

Every picture takes one way into Sightline, whatever the API, the engine and the route it comes by: its file is fetched, identified by its
own first bytes, checked, decoded in a limited process, turned upright, laid on a background, brought to sRGB and to the size that the
model can use. An engine receives those pixels and nothing else. This page is made by `python docs/generate.py`, its tables from the code.

## What is taken

{accepted}.

| format | taken | refused, by name |
|---|---|---|
| JPEG | baseline, progressive, grey, CMYK; a phone's multi-picture file is its first picture | 12-bit, lossless, hierarchical, arithmetic-coded, 2 channels |
| PNG | 1 to 16 bits, palette, grey, alpha, tRNS, interlaced | animated |
| WebP | lossy, lossless, alpha | animated |
| GIF | one frame | animated |
| BMP | 1 to 32 bits, alpha, RLE, top-down | |
| TIFF | strips and tiles; none, LZW, deflate, PackBits, CCITT, JPEG; grey, RGB, palette, CMYK; 8 and 16 bits; alpha | several pages, 32-bit, signed and fractional numbers, LAB, other compressions |
| AVIF | one picture, alpha | sequences |
| HEIC | the primary picture, alpha | sequences |

- **Orientation** is applied exactly once: EXIF in JPEG, PNG and WebP, the tag in TIFF, the turn and mirror boxes of AVIF and HEIC (whose
  EXIF does not count). Width and height in replies are upright.
- **Transparency** is laid on white, or on the operator's `background`. A BMP whose every pixel is transparent is opaque.
- **16 bits** are scaled to 8, not cut off (16-bit RGB loses its low byte first: at most one level off).
- **Colour**: an ICC profile of at most 1 MB that fits such pixels is applied; a broken one is ignored, and so is one that moves no
  colour by more than 2 levels of 255. CMYK without one: each of R, G, B is (1 - ink) x (1 - black), as in browsers. Colour tags of other
  kinds (gAMA, cHRM and cICP in PNG, nclx in AVIF and HEIC) are not looked at.
- The declared media type does not matter: the file's first bytes do.
- Nothing else of the metadata is looked at, and nothing but pixels goes on.

The same scene in some 146 files (8 orientations, every alpha mode, bit depth and format) gives `peek`'s same answers, and the reference's pixels:
equal or at least 45 dB where a lossless file's levels are rounded, at least 35 dB for lossy ones (`pytest tests/images/test_same_picture.py -s`).

Ways in: a `data:` URI or bare base64 in the request, a file's bytes, or [a URL](#pictures-by-url) where the operator allows it. In OpenAI's
shape a picture is a part `{{"type": "image_url", "image_url": {{"url": ...}}}}` or `{{"type": "image", "image": ...}}`; see [the API](api.md).

## How large a picture reaches the model

A model's own files say how pixels become tokens; Sightline reads them and computes the same, so that the cost of a picture is known before
anything runs (`POST /v1/chat/completions/input_tokens` tells it), and the reply says of each picture its original size, served size and tokens.

| family | a picture becomes | checked against |
|---|---|---|
| Qwen2-VL, 2.5, 3, 3.5 | a grid of cells within a range of pixels, one token a cell | transformers' processors: 200 sizes, prompts, pixels |
| Pixtral, Mistral 3 | a grid of patches within its longest edge, one more token a row | the same; pixels exact |
| LLaVA-1.5 | 576 tokens: the short side brought to 336 pixels and the middle square kept, **the rest of the picture is lost** | the same; pixels exact |
| LLaVA-NeXT, LLaVA-OneVision | tiles on the canvas that wastes least, beside a view of the whole | the same; tiles exact, whole views within 1 level of 255 on average |
| InternVL | tiles of 448 pixels in the grid of the nearest shape, beside a thumbnail, 256 tokens each | the same; tiles exact, thumbnails within 1 level |
| Gemma 3 | 256 tokens: squeezed to a square; with pan and scan also pieces | the same; exact without pan and scan |
| Idefics3, SmolVLM | tiles, with tokens for rows, columns and the whole view | the same; pixels exact |
| OpenAI, Anthropic, Gemini | what their pages say, for engines that talk to them | **unverified**: published formulas only, cited in `src/sightline/images/published.py` |

`make test-engines` computes the tables anew with transformers; the tests hold them.

Who decides the size, each only narrowing what the one before left: the model, the operator for the server, the operator for the model,
the request, the picture's own part:

{sizes}

`detail: low` is a fourth of the pixels; `high`, `original` and `auto` are all that the operator leaves. Pictures that would not fit into the
context are scaled to fit, and the reply says so; see [the API](api.md#what-became-of-each-picture).
`--limit-mm-per-prompt image=4` bounds the pictures of a request, on every engine.

## Limits

{limits}

A JPEG counts as many pixels as it has after its scaled decode, so that a phone's 48 or 100 megapixels are taken; a progressive one, which needs memory for
every coefficient whatever the scale, may have three times `max_pixels`. A TIFF's tile may have 16.8 million pixels; a JPEG or PNG 65,536 parts.

A picture is decoded in one of a few processes that hold nothing else, with bounds on memory, CPU time and wall time that the kernel enforces.
A file that kills its process costs its own request; the process is replaced. Decoded pictures are kept by content for the next request of the
same tenant (never of another), so a picture that is asked about twice is decoded once.

| code (400) | when |
|---|---|
| `invalid_base64_image` | the data URI or base64 cannot be decoded |
| `empty_image_file` | 0 bytes |
| `invalid_image_format` | no picture, a format that is not taken, or an animation |
| `image_parse_error` | truncated or corrupt |
| `image_file_too_large` | more than `max_bytes` |
| `image_too_large` | more than `max_pixels` to decode, a side over `max_side`, or out of the decoder's memory or time |
| `image_too_small` | a side under 2 pixels, or one side over 200 times the other |

The message names the picture by its place in the request: `messages[0].content[1].image_url.url`.

## Speed

CPU to a budget of one million pixels, beside Pillow's full decode and Lanczos, side by side in one run:

    make bench-images

{speed}

![CPU and closeness, by format](bench-images.png)

`make bench-health` measures how `/health` answers while 16 clients send photographs of 5 MB; `make fuzz-images` sends 10,000 damaged files
through the decoders.

## Pictures by URL

A request may name a picture by `http:` or `https:` URL. **This is off by default**: a server that fetches what strangers
name can be sent to places that only it can reach. With it off, such a request gets 400 `invalid_image_url` and is told to
send a `data:` URI, which always works.

    sightline serve --fetch cdn.example.com,*.example.org          # these hosts
    sightline serve --fetch any-public                             # any host at public addresses
    sightline serve --fetch minio.internal:9000 --fetch-network 10.1.0.0/16

{fetch}

`SIGHTLINE_FETCH` says the same as `--fetch`.

**What is refused, and why**

- *URLs that two programs could read differently*: backslashes, spaces, control characters, letters outside ASCII (use
  percent-encoding, and the `xn--` form of a host), user names, more than 2,048 characters, any other scheme. A URL is
  parsed once, and the request is made of its parts.
- *Addresses that are not public*: private, loopback, link-local, shared, multicast, reserved, documentation, and the IPv6
  forms that lead to an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo). A host is looked up once; **every** address
  it has is checked, and the connection is made to a checked one: `127.1`, `0x7f000001` and a DNS name that changes its
  answer lead nowhere. TLS verifies the name, not the address.
- *The cloud's metadata addresses*, even inside a network that you allow: they hold the machine's credentials.
- *Answers that are not a picture's*: a status other than 200, a web page, a compressed body (asked not to be, never
  inflated), endless heads, bodies in crumbs. The declared media type is ignored; the file's own first bytes decide.

Each download has a connection of its own, with no cookies, credentials, referrer or proxy from the environment, and is
closed at once when the client leaves.

| code (400) | when |
|---|---|
| `invalid_image_url` | the URL, its host, port or address is not allowed; or the host does not exist (told alike, so that nobody can ask which names a private network has) |
| `failed_to_download_image` | out of time, unreachable, a redirect, another status, a web page, bad TLS, broken off |
| `image_file_too_large`, `empty_image_file` | as for any picture |

On an IPv6-only network with NAT64, `--fetch-network 64:ff9b::/96` lets IPv4 hosts be reached. It opens every IPv4 address
that your translator reaches, private ones too; only metadata addresses stay refused.
"""
