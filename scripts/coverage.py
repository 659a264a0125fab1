"""Compares what the fuzz corpora reach with what tests/fuzz/coverage.txt asks for. scripts/fuzz --coverage runs it."""

import json
import os
import sys

# How far below what was reached the floor lies that --renew writes, in per cent: room for changes of what the targets are about.
SLACK = 3


def reached(profile, folders):
    """Lines covered and lines in all of the source files below these folders or of these names."""
    with open(profile, encoding="utf-8") as file:
        files = json.load(file)["data"][0]["files"]
    covered = count = 0
    for entry in files:
        name = entry["filename"]
        if any(name.endswith("/" + folder) or "/" + folder.rstrip("/") + "/" in name for folder in folders):
            covered += entry["summary"]["lines"]["covered"]
            count += entry["summary"]["lines"]["count"]
    return covered, count


def main():
    arguments = sys.argv[1:]
    renew = arguments[0] == "--renew"
    table, profiles, *wanted = arguments[renew:]
    with open(table, encoding="utf-8") as file:
        lines = file.read().splitlines()
    sunk = []
    print(f"{'target':<14} {'lines':>6} {'reached':>9} {'floor':>6}")
    for number, line in enumerate(lines):
        if line.startswith("#") or not line.strip():
            continue
        target, floor, *folders = line.split()
        if target not in wanted:
            continue
        covered, count = reached(os.path.join(profiles, target + ".json"), folders)
        if count == 0:
            sys.exit(f"error: {table}: {' '.join(folders)} name no source file for {target}")
        percent = 100 * covered / count
        print(f"{target:<14} {count:>6} {percent:>7.1f} % {floor:>4} %")
        if percent < int(floor):
            sunk.append(f"{target} reaches {percent:.1f} % of the lines that it is about, {floor} % are asked for")
        lines[number] = " ".join([f"{target:<13}", f"{max(0, int(percent) - SLACK):>3}", *folders])
    if renew:
        with open(table, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    elif sunk:
        print("\n".join(sunk), file=sys.stderr)
        sys.exit(
            "error: look for inputs that reach what is new (scripts/fuzz --seconds 600 TARGET) and add them to tests/fuzz/corpus, "
            "or, where nothing can reach it, lower the floor (scripts/fuzz --coverage --renew)"
        )


main()
