# other_image.py SNAPSHOT IMAGE OUT [FILESYSTEM]: the snapshot with another image in its only entry, every checksum right.
import sys, json, zipfile, zlib, hashlib, struct
snap, image, out = sys.argv[1:4]
old = zipfile.ZipFile(snap); data = open(image, "rb").read()
meta = json.loads(old.read("snapshot.json")); sums = json.loads(old.read("checksums.json"))
entry = meta["entries"][0]; entry["size_bytes"] = len(data)
if len(sys.argv) > 4: entry["filesystem"] = sys.argv[4]
text = lambda value: json.dumps(value, separators=(",", ":")).encode()
body, central, listed = b"", b"", []
year, month, day, hour, minute, second = old.infolist()[0].date_time
date, time = (year - 1980) << 9 | month << 5 | day, hour << 11 | minute << 5 | second // 2
def add(path, raw, deflate):
    global body, central
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(raw) + packer.flush() if deflate else raw
    crc, name, at = zlib.crc32(raw), path.encode(), len(body)
    kind = (45, 8, 8) if deflate else (20, 0, 0)
    inside = (0, 2**32 - 1, 2**32 - 1) if deflate else (crc, len(raw), len(raw))
    body += struct.pack("<4s5H3I2H", b"PK\3\4", *kind, time, date, *inside, len(name), 20 if deflate else 0) + name
    body += (struct.pack("<2H2Q", 1, 16, 0, 0) if deflate else b"") + packed
    if deflate: body += struct.pack("<4sI2Q", b"PK\7\x08", crc, len(packed), len(raw))
    central += struct.pack("<4s6H3I5H2I", b"PK\1\2", 3 << 8 | 45, *kind, time, date, crc, len(packed), len(raw), len(name), 0, 0, 0, 0, 0o100600 << 16, at) + name
    listed.append(dict(path=path, size_bytes=len(raw), stored_bytes=len(packed), crc32="%08x" % crc, sha256=hashlib.sha256(packed).hexdigest()))
add("snapshot.json", text(meta), False)
add("images/%s.img" % entry["name"], data, True)
listed[1].update(map="whole", used_bytes=len(data)); sums["entries"] = list(listed)
last = text(sums); add("checksums.json", last, False)
add("checksums.sha256", (hashlib.sha256(last).hexdigest() + "  checksums.json\n").encode(), False)
end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 4, 4, len(central), len(body), 0)
open(out, "wb").write(body + central + end)
