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

  # Run one of build/*.py with the tools' Python. `spec` reaches it as a JSON file; `modules` are the
  # further files of build/ that it imports (only those: a change elsewhere rebuilds nothing).
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
      # Set and dict order, and so bytecode, must not change from run to run.
      PYTHONHASHSEED = "0";
      PYTHONPATH = "${tree}/wheels";
      spec = builtins.toJSON spec;
      passAsFile = [ "spec" ];
      preferLocalBuild = true;
      allowSubstitutes = false;
    };
}
