# Table of contents: every directory here with a lock.json is an image, but for those that images
# share: `tools` is what builds them, `loaders` what firmware starts them with, `builders` what wheels
# are built with where an image has some from source distributions.
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
    "builders"
  ];
  locked = filter (name: pathExists (./. + "/${name}/lock.json")) (attrNames (readDir ./.));
  names = filter (name: !elem name shared) locked;

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
  # 4. Wheels from source distributions.
  wheel = import ./lib/sources.nix {
    inherit inputs tools;
    lock = lockOf "builders";
  };
  # 5. The stages: base, python, config, initrd, and the image that names them all.
  image = import ./lib/image.nix {
    inherit
      inputs
      tools
      loaders
      wheel
      ;
  };
in
{
  inherit tools loaders;
  # Of images and of what they share.
  locks = listToAttrs (
    map (name: {
      inherit name;
      value = lockOf name;
    }) locked
  );
  byName = listToAttrs (
    map (name: {
      inherit name;
      value =
        let
          lock = lockOf name;
          kept = inputs.available lock;
          of =
            label: lock:
            image {
              inherit name label lock;
              config = [
                { tree = ./config; }
              ]
              ++ map (part: {
                tree = ./parts + "/${part}/site-packages";
                into = "${lock.system.environment}/lib/python${lock.python.version}/site-packages";
              }) (lock.system.parts or [ ])
              ++ (
                let
                  own = ./. + "/${name}/config";
                in
                if builtins.pathExists own then [ { tree = own; } ] else [ ]
              );
            };
        in
        of name lock
        // {
          # Without the files that no mirror has: what can be built from mirrors alone.
          available = of (if kept == lock then name else "${name}-available") kept;
        };
    }) names
  );
}
