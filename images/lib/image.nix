# lock -> layers -> image. Each stage is one derivation and an attribute of the image, so that it can
# be built and checked alone: `nix build --rebuild .#pxe-sim.base`.
{
  inputs,
  tools,
  loaders,
  wheel,
}:
{
  name,
  label, # its name in the manifest
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

  # What runs the image's python3.X.
  interpreter =
    let
      names = [
        "libc6"
        "libexpat1"
        "zlib1g"
        "libpython${lock.python.version}-minimal"
        "libpython${lock.python.version}-stdlib"
        "python${lock.python.version}-minimal"
      ];
    in
    builtins.filter (deb: builtins.elem deb.name names) (listed files.debs);

  # Debian packages, and by explicit steps what their maintainer scripts would do.
  base = tools.run {
    name = "${name}-base.squashfs";
    script = "base.py";
    modules = [
      "bytecode.py"
      "compiling.py"
      "deb.py"
      "system.py"
    ];
    spec = {
      inherit (lock) epoch system;
      inherit interpreter;
      python = lock.python.version;
      debs = listed files.debs;
    };
  };

  # Wheels made from source distributions, by name.
  wheels = builtins.listToAttrs (
    map (entry: {
      inherit (entry) name;
      value = wheel entry;
    }) files.sources
  );

  allWheels =
    listed files.wheels
    ++ map (entry: {
      inherit (entry) name version;
      file = ""; # its builder names it
      source = "${wheels.${entry.name}}";
    }) files.sources;

  # Wheels, installed into one environment, with bytecode made by the image's own Python.
  environment =
    name: wheels:
    tools.run {
      name = "${name}-python.squashfs";
      script = "python.py";
      modules = [
        "bytecode.py"
        "compiling.py"
        "deb.py"
        "metadata.py"
        "wheel.py"
      ];
      spec = {
        inherit (lock) epoch python;
        prefix = lock.system.environment;
        owners = lock.system.owners or { };
        inherit wheels;
        # Only these of the base, so that a change there leaves this layer as it is.
        inherit interpreter;
      };
    };

  python = environment name allWheels;

  # Of the wheels only those that the control node's and every node's own services need.
  few = builtins.filter (wheel: builtins.elem wheel.name lock.system.minimal);

  # The project's own files: trees, one over the other, each into a directory of the root.
  own = tools.run {
    name = "${name}-config.squashfs";
    script = "config.py";
    spec = {
      inherit (lock) epoch;
      trees = map (
        {
          tree,
          into ? "",
        }:
        {
          inherit into;
          tree = "${tree}";
        }
      ) config;
    };
  };

  kernel = tools.run {
    name = "${name}-kernel";
    script = "kernel.py";
    modules = [ "deb.py" ];
    spec.debs = builtins.filter (deb: builtins.match "linux-(image|binary)-[0-9].*" deb.name != null) (
      listed files.debs
    );
  };

  initrd = tools.run {
    name = "${name}-initrd";
    script = "initrd.py";
    modules = [ "deb.py" ];
    spec = {
      inherit (lock) epoch;
      inherit (lock.system) initrd;
      base = "${base}";
      scripts = "${../initrd}";
      busybox = "${tools.seed}/busybox";
    };
  };

  stages = {
    inherit base python;
    config = own;
    few = environment "${name}-minimal" (few allWheels);
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

  # The layers, the first the lowest, with one or the other environment. What lies all below one
  # directory can be mounted there, after the others.
  layered = python: [
    {
      name = "base";
      stage = "base";
    }
    {
      name = "python";
      stage = python;
      mount = lock.system.environment;
    }
    {
      name = "config";
      stage = "config";
    }
  ];

  # What the bill of materials says of Python: of a wheel made here, its source.
  distributions = lock.wheels ++ lock.sources or [ ];

  # The image of some layers, under a name of its own.
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
        layers = map (
          {
            name,
            stage,
            mount ? null,
          }:
          {
            inherit name mount;
            path = "${stages.${stage}}";
            verity = "${verity.${stage}}";
          }
        ) layers;
        kernel = "${kernel}";
        initrd = "${initrd}";
        loaders = "${loaders}";
      };
    };
in
assemble {
  name = label;
  wheels = distributions;
  layers = layered "python";
}
// stages
// {
  inherit
    kernel
    initrd
    verity
    wheels
    ;
  # With few of Python's packages, a sixth of the size: what tests of booting boot.
  minimal = assemble {
    name = "${label}-minimal";
    wheels = few distributions;
    layers = layered "few";
  };
  prefix = lock.system.environment;
  pythonVersion = lock.python.version;
}
