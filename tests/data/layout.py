"""Lays down small data folders for the tests of the index."""


def lay(root, *files, **texts):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image of " + file.encode())
    for name, text in texts.items():
        (root / f"{name}.csv").write_bytes(text.encode())
    return root


def rows(index, *columns):
    return list(index.table[list(columns)].itertuples(index=False, name=None))
