# lock -> layers -> image. Each stage is one derivation and an attribute of the image, so that it can
# be built and checked alone: `nix build --rebuild .#pxe-sim.base`.
{
  inputs,
  tools,
  loaders,
}:
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

  stages = {
    inherit base python;
    config = own;
  };

  # A layer's hash tree, and its own size and hash: made anew only with the layer.
  verity = builtins.mapAttrs (
    layer: path:
    tools.run {
      name = "${name}-${layer}-verity";
      script = "verity.py";
      spec.layer = "${path}";
    }
  ) stages;

  # The image of some of the layers, the first the lowest, under a name of its own.
  assemble =
    {
      name,
      layers,
      wheels,
    }:
    tools.run {
      inherit name;
      script = "image.py";
      spec = {
        inherit name wheels;
        inherit (lock) epoch;
        debs = lock.debs ++ loaders.debs;
        layers = map (layer: {
          name = layer;
          path = "${stages.${layer}}";
          verity = "${verity.${layer}}";
        }) layers;
        kernel = "${kernel}";
        initrd = "${initrd}";
        loaders = "${loaders}";
      };
    };
in
assemble {
  inherit name;
  inherit (lock) wheels;
  layers = [
    "base"
    "python"
    "config"
  ];
}
// stages
// {
  inherit kernel initrd verity;
  # Without Python's packages, a sixth of the size: what tests of booting boot.
  minimal = assemble {
    name = "${name}-minimal";
    wheels = [ ];
    layers = [
      "base"
      "config"
    ];
  };
  prefix = lock.system.environment;
  pythonVersion = lock.python.version;
}
