# The build's own tools: Python, squashfs-tools, depmod and zstd, unpacked from locked Debian
# packages by a static busybox, and run through their own dynamic loader. No host tool, no /bin/sh,
# no user namespace.
{
  system,
  inputs,
  lock,
}:
let
  seed = inputs.seed lock;
  files = inputs.files {
    inherit seed lock;
    image = "tools";
  };

  tree = derivation {
    name = "tools";
    inherit system;
    builder = "${seed}/busybox";
    args = [
      "sh"
      ./build/unpack-tools.sh
    ];
    busybox = "${seed}/busybox";
    debs = map (deb: deb.source) files.debs;
    wheels = map (wheel: wheel.source) files.wheels;
    preferLocalBuild = true;
    allowSubstitutes = false;
  };

  lib = "${tree}/usr/lib/x86_64-linux-gnu";
in
tree
// {
  inherit seed;

  # Run one of build/*.py with the tools' Python. It gets `spec` as a JSON file. `modules`: the other
  # files of build/ that it imports; changes of other files rebuild nothing.
  run =
    {
      name,
      script,
      modules ? [ ],
      spec,
    }:
    derivation {
      inherit name system;
      builder = "${lib}/ld-linux-x86-64.so.2";
      args = [
        "--library-path"
        lib
        "${tree}/usr/bin/python3.11"
        "-s"
        "-B"
        "${
          builtins.path {
            name = "build";
            path = ./build;
            filter =
              path: _:
              builtins.elem (baseNameOf path) (
                [
                  script
                  "common.py"
                ]
                ++ modules
              );
          }
        }/${script}"
      ];
      tools = "${tree}";
      # The order of sets, and so bytecode, must be the same in every run.
      PYTHONHASHSEED = "0";
      PYTHONPATH = "${tree}/wheels";
      spec = builtins.toJSON spec;
      passAsFile = [ "spec" ];
      preferLocalBuild = true;
      allowSubstitutes = false;
    };
}
