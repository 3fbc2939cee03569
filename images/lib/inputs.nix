# A locked file as a fixed-output derivation. `orchestrate image fetch` puts the file into the store;
# from then on Nix finds the output valid and never runs this. Where it runs, the file is missing,
# and the builder's only work is to say so.
{ system }:
let
  inherit (builtins) concatStringsSep filter map;

  isElsewhere = entry: entry.elsewhere or false;
  # Of what lies elsewhere, nobody knew the size when it was locked.
  size =
    entry: if entry.size or null == null then "size unknown" else "${toString entry.size} bytes";
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
      entry,
      say, # lines on what to do
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

  # All files of a lock, each with its `source`. Nix stops at the first that is missing; so those
  # that no mirror has, which are missing together, name each other. (Nix shows a builder's last lines:
  # ten, in its older versions.)
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

  # A lock without the files that no mirror has; of one that has none, the lock itself.
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
