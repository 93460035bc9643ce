#!/usr/bin/env python3
"""Says whether two directory trees are equal, as `rsync -aHAX --delete` makes them: what exists,
content, modes, owners, times to the nanosecond, extended attributes and ACLs, which names are one
file, what links say, devices. It shares nothing with the mirror that it judges.
usage: trees.py A B [EXCLUDED]...; exit 0 equal, 1 not, each difference a line."""

import os
import stat
import sys

CHUNK = 1 << 20


def walk(root, excluded):
    """Relative path -> lstat of everything, the root itself as the empty path."""
    found = {"": os.lstat(root)}
    left = [""]
    while left:
        here = left.pop()
        with os.scandir(os.path.join(root, here)) as entries:
            for entry in entries:
                path = os.path.join(here, entry.name)
                if path in excluded:
                    continue
                found[path] = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found[path].st_mode):
                    left.append(path)
    return found


def attributes(path):
    names = os.listxattr(path, follow_symlinks=False)
    return {n: os.getxattr(path, n, follow_symlinks=False) for n in names}


def extents(fd, size):
    """Ranges that hold data; what is between them is zeros."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, at


def covered(a, b, size):
    """The ranges where either file has data, as one sorted list."""
    both = sorted(list(extents(a, size)) + list(extents(b, size)))
    merged = []
    for start, end in both:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return merged


def same_content(a, b, size):
    with open(a, "rb", buffering=0) as x, open(b, "rb", buffering=0) as y:
        for start, end in covered(x.fileno(), y.fileno(), size):
            for at in range(start, end, CHUNK):
                count = min(CHUNK, end - at)
                if os.pread(x.fileno(), count, at) != os.pread(y.fileno(), count, at):
                    return False
    return True


def groups(found):
    """Every path of a file with several names -> all of them."""
    by_file = {}
    for path, s in found.items():
        if not stat.S_ISDIR(s.st_mode) and s.st_nlink > 1:
            by_file.setdefault((s.st_dev, s.st_ino), []).append(path)
    return {path: sorted(names) for names in by_file.values() for path in names}


def differences(a, b, excluded=()):
    left, right = walk(a, excluded), walk(b, excluded)
    for path in sorted(left.keys() - right.keys()):
        yield f"{path}: only in {a}"
    for path in sorted(right.keys() - left.keys()):
        yield f"{path}: only in {b}"
    names = groups(left), groups(right)
    for path in sorted(left.keys() & right.keys()):
        l, r = left[path], right[path]
        full = os.path.join(a, path), os.path.join(b, path)
        if stat.S_IFMT(l.st_mode) != stat.S_IFMT(r.st_mode):
            yield f"{path}: of another kind"
            continue
        if not stat.S_ISLNK(l.st_mode) and l.st_mode != r.st_mode:
            yield f"{path}: mode {l.st_mode:o}, {r.st_mode:o}"
        if (l.st_uid, l.st_gid) != (r.st_uid, r.st_gid):
            yield f"{path}: owner"
        if l.st_mtime_ns != r.st_mtime_ns:
            yield f"{path}: time {l.st_mtime_ns}, {r.st_mtime_ns}"
        if attributes(full[0]) != attributes(full[1]):
            yield f"{path}: extended attributes"
        if names[0].get(path) != names[1].get(path):
            yield f"{path}: names of the same file"
        if stat.S_ISLNK(l.st_mode) and os.readlink(full[0]) != os.readlink(full[1]):
            yield f"{path}: another target"
        if stat.S_ISREG(l.st_mode):
            if l.st_size != r.st_size or not same_content(*full, l.st_size):
                yield f"{path}: content"
        elif l.st_rdev != r.st_rdev:
            yield f"{path}: another device"


def main():
    a, b, *excluded = sys.argv[1:]
    found = list(differences(a, b, set(excluded)))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
