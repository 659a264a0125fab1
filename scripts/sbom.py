"""Writes what the program is built from as CycloneDX 1.5 (https://cyclonedx.org), in JSON: the crates that Cargo.lock names, as far as
they are built for the platform that is given. scripts/package runs it."""

import json
import os
import subprocess
import sys
import time
import tomllib


def tree(edges, platform):
    """The crates that these kinds of dependencies lead to, with their licences, by name and version."""
    command = ["cargo", "tree", "--locked", "--offline", "--edges", edges, "--target", platform]
    command += ["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = {}
    for line in filter(None, lines):
        package, _, licence = line.partition("|")
        name, version, *_ = package.split()
        found[name, version.removeprefix("v")] = licence
    return found


def reference(name, version):
    return f"pkg:cargo/{name}@{version}"


def dependencies(entry, packages):
    """The crates that an entry of Cargo.lock depends on, by name and version."""
    for text in entry.get("dependencies", []):
        name, *version = text.split()
        yield from ((one, its) for one, its in packages if one == name and version in ([], [its]))


def main():
    platform = sys.argv[1]
    with open("Cargo.toml", "rb") as file:
        manifest = tomllib.load(file)
    package, direct = manifest["package"], manifest["dependencies"].keys() | manifest.get("build-dependencies", {}).keys()
    with open("Cargo.lock", "rb") as file:
        locked = {(entry["name"], entry["version"]): entry for entry in tomllib.load(file)["package"]}
    own = package["name"], package["version"]
    # Cargo.lock names this package's dependencies for development as well.
    locked[own]["dependencies"] = [text for text in locked[own]["dependencies"] if text.split()[0] in direct]
    built, needed = tree("normal,build", platform), tree("normal,no-proc-macro", platform)
    components = []
    for name, version in sorted(built.keys() - {own}):
        component = {
            "type": "library",
            "bom-ref": reference(name, version),
            "name": name,
            "version": version,
            # What is needed to build the program and is no part of it is excluded.
            "scope": "required" if (name, version) in needed else "excluded",
            "hashes": [{"alg": "SHA-256", "content": locked[name, version]["checksum"]}],
            "licenses": [{"expression": built[name, version].replace("/", " OR ")}],
            "purl": reference(name, version),
        }
        components.append(component)
    graph = [
        {
            "ref": reference(*one),
            "dependsOn": sorted({reference(*other) for other in dependencies(locked[one], locked) if other in built}),
        }
        for one in sorted(built.keys() | {own})
    ]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"]))),
            "component": {
                "type": "application",
                "bom-ref": reference(*own),
                "name": own[0],
                "version": own[1],
                "licenses": [{"expression": package["license"]}],
            },
        },
        "components": components,
        "dependencies": graph,
    }
    json.dump(document, sys.stdout, indent=1)
    print()


main()
