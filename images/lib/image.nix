# lock -> layers -> image. Each stage is one derivation and an attribute of the image, so that it can
# be built and checked alone: `nix build --rebuild .#pxe-sim.base`.
{ inputs, tools }:
{
  name,
  lock,
  config,
}:
let
  files = inputs.files {
    inherit (tools) seed;
    inherit lock;
    image = name;
  };
  listed = map (entry: {
    inherit (entry) name version;
    file = entry.file or "";
    source = "${entry.source}";
  });

  # Debian packages, and by explicit steps what their maintainer scripts would do.
  base = tools.run {
    name = "${name}-base.squashfs";
    script = "base.py";
    modules = [
      "deb.py"
      "system.py"
    ];
    spec = {
      inherit (lock) epoch system;
      debs = listed files.debs;
    };
  };

  # What runs the image's python3.X.
  interpreter = [
    "libc6"
    "libexpat1"
    "zlib1g"
    "libpython${lock.python.version}-minimal"
    "libpython${lock.python.version}-stdlib"
    "python${lock.python.version}-minimal"
  ];

  # Wheels, installed into one environment, with bytecode made by the image's own Python.
  python = tools.run {
    name = "${name}-python.squashfs";
    script = "python.py";
    modules = [
      "bytecode.py"
      "deb.py"
      "wheel.py"
    ];
    spec = {
      inherit (lock) epoch python;
      prefix = lock.system.environment;
      wheels = listed files.wheels;
      # Only these of the base, so that a change there leaves this layer as it is.
      interpreter = builtins.filter (deb: builtins.elem deb.name interpreter) (listed files.debs);
    };
  };

  # The project's own files, as they lie in config/.
  own = tools.run {
    name = "${name}-config.squashfs";
    script = "config.py";
    spec = {
      inherit (lock) epoch;
      trees = map (path: "${path}") (builtins.filter builtins.pathExists config);
    };
  };

  kernel = tools.run {
    name = "${name}-kernel";
    script = "kernel.py";
    modules = [ "deb.py" ];
    spec.debs = builtins.filter (deb: builtins.match "linux-image-[0-9].*" deb.name != null) (
      listed files.debs
    );
  };

  initrd = tools.run {
    name = "${name}-initrd";
    script = "initrd.py";
    spec = {
      inherit (lock) epoch;
      inherit (lock.system) initrd;
      base = "${base}";
      init = "${../initrd/init}";
      busybox = "${tools.seed}/busybox";
    };
  };
in
tools.run {
  inherit name;
  script = "image.py";
  spec = {
    inherit name;
    inherit (lock) epoch debs wheels;
    layers = [
      {
        name = "base";
        path = "${base}";
      }
      {
        name = "python";
        path = "${python}";
      }
      {
        name = "config";
        path = "${own}";
      }
    ];
    kernel = "${kernel}";
    initrd = "${initrd}";
  };
}
// {
  inherit
    base
    python
    kernel
    initrd
    ;
  config = own;
  prefix = lock.system.environment;
  pythonVersion = lock.python.version;
}
