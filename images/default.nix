# Table of contents: every directory here with a lock.json is an image; `tools` is what builds them.
{ system }:
let
  inherit (builtins)
    attrNames
    filter
    fromJSON
    listToAttrs
    pathExists
    readDir
    readFile
    ;

  lockOf = name: fromJSON (readFile (./. + "/${name}/lock.json"));

  names = filter (name: name != "tools" && pathExists (./. + "/${name}/lock.json")) (
    attrNames (readDir ./.)
  );

  # 1. What comes from outside, by hash.
  inputs = import ./lib/inputs.nix { inherit system; };
  # 2. What builds: busybox unpacks Python and squashfs-tools.
  tools = import ./lib/tools.nix {
    inherit system inputs;
    lock = lockOf "tools";
  };
  # 3. The stages: base, python, config, initrd, and the image that names them all.
  image = import ./lib/image.nix { inherit inputs tools; };
in
{
  inherit tools;
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
