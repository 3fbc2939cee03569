# A locked file as a fixed-output derivation. `orchestrate image fetch` puts the file into the store;
# from then on Nix finds the output valid and never runs this. Where it runs, the file is missing,
# and the builder's only work is to say so.
{ system }:
let
  # Of what lies elsewhere, nobody knew the size when it was locked.
  size = entry: if entry.size == null then "size unknown" else "${toString entry.size} bytes";
  hint = "bring it, and all else that is missing, with:  orchestrate image fetch";
in
rec {
  # The static busybox that runs the first derivations. Nothing can run before it, so a missing seed
  # is told through the address that Nix reports as not loadable.
  seed =
    lock:
    derivation {
      name = "seed";
      inherit system;
      builder = "builtin:fetchurl";
      url = "missing://the-seed-of-all-builds--run--orchestrate-image-fetch-IMAGE";
      outputHashMode = "recursive";
      outputHashAlgo = "sha256";
      outputHash = lock.seed.sha256;
      executable = true;
      unpack = false;
      preferLocalBuild = true;
      allowSubstitutes = false;
    };

  file =
    {
      seed,
      image,
      entry,
    }:
    derivation {
      name = entry.store;
      inherit system;
      builder = "${seed}/busybox";
      args = [
        "sh"
        "-c"
        ''
          echo "missing: ${entry.file or entry.path} (${size entry}, sha256 ${entry.sha256})" >&2
          echo "${hint} ${image}" >&2
          echo "list what is missing with:  orchestrate image ls ${image}" >&2
          exit 1
        ''
      ];
      outputHashMode = "flat";
      outputHashAlgo = "sha256";
      outputHash = entry.sha256;
      preferLocalBuild = true;
      allowSubstitutes = false;
    };

  files =
    {
      seed,
      image,
      lock,
    }:
    let
      all = map (entry: entry // { source = file { inherit seed image entry; }; });
    in
    {
      debs = all lock.debs;
      wheels = all lock.wheels;
    };
}
