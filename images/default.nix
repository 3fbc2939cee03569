# Table of contents: every directory here with a lock.json is an image, but for two that all images
# share: `tools` is what builds them, `loaders` what firmware starts them with.
{ system }:
let
  inherit (builtins)
    attrNames
    elem
    filter
    fromJSON
    listToAttrs
    pathExists
    readDir
    readFile
    ;

  lockOf = name: fromJSON (readFile (./. + "/${name}/lock.json"));

  shared = [
    "tools"
    "loaders"
  ];
  names = filter (name: !elem name shared && pathExists (./. + "/${name}/lock.json")) (
    attrNames (readDir ./.)
  );

  # 1. What comes from outside, by hash.
  inputs = import ./lib/inputs.nix { inherit system; };
  # 2. What builds: busybox unpacks Python and squashfs-tools.
  tools = import ./lib/tools.nix {
    inherit system inputs;
    lock = lockOf "tools";
  };
  # 3. Loaders for firmware, the same for every image.
  loaders = import ./lib/loaders.nix {
    inherit inputs tools;
    lock = lockOf "loaders";
  };
  # 4. The stages: base, python, config, initrd, and the image that names them all.
  image = import ./lib/image.nix { inherit inputs tools loaders; };
in
{
  inherit tools loaders;
  byName = listToAttrs (
    map (name: {
      inherit name;
      value = image {
        inherit name;
        lock = lockOf name;
        config = [
          ./config
          (./. + "/${name}/config")
        ];
      };
    }) names
  );
}
