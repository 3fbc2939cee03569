# A locked file as a fixed-output derivation. `orchestrate image fetch` adds the file to the store;
# then Nix finds the output valid, and never runs the builder. If the builder runs, the file is
# missing, and it only prints that.
{ system }:
let
  inherit (builtins) concatStringsSep filter map;

  isElsewhere = entry: entry.elsewhere or false;
  # A lock has no size for files that neither a mirror nor an index has.
  size =
    entry: if entry.size or null == null then "size unknown" else "${toString entry.size} bytes";
in
rec {
  # The static busybox that runs the first derivations. No program exists before it, so the message
  # for a missing seed is in the URL, which Nix prints when it cannot fetch it.
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
      entry,
      say, # lines that tell what to do
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
          ${concatStringsSep "\n" (map (line: "echo '${line}' >&2") say)}
          exit 1
        ''
      ];
      outputHashMode = "flat";
      outputHashAlgo = "sha256";
      outputHash = entry.sha256;
      preferLocalBuild = true;
      allowSubstitutes = false;
    };

  # All files of a lock, each with its `source`. Nix stops at the first missing file. So the message
  # for a file that no mirror has lists all such files. (Nix shows only a builder's last lines, ten in
  # older versions.)
  files =
    {
      seed,
      image,
      lock,
    }:
    let
      fetch = "orchestrate image fetch ${image}";
      elsewhere = map (entry: "no mirror has:  ${entry.url}") (
        filter isElsewhere (lock.debs ++ lock.wheels)
      );
      all = map (
        entry:
        entry
        // {
          source = file {
            inherit seed entry;
            say =
              if isElsewhere entry then
                elsewhere ++ [ "bring what is missing of these with:  ${fetch}" ]
              else
                [
                  "bring it, and all else that is missing, with:  ${fetch}"
                  "list what is missing with:  orchestrate image ls ${image}"
                ];
          };
        }
      );
    in
    {
      debs = all lock.debs;
      wheels = all lock.wheels;
      sources = all (lock.sources or [ ]);
    };

  # A lock without the files that no mirror has.
  available =
    lock:
    let
      kept = filter (entry: !isElsewhere entry);
    in
    lock
    // {
      debs = kept lock.debs;
      wheels = kept lock.wheels;
    };
}
