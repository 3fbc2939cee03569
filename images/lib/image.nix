# Build an image from its lock. Each stage is one derivation and an attribute of the image, so that it
# can be built and checked separately: `nix build --rebuild .#pxe-sim.base`.
{
  inputs,
  tools,
  loaders,
  wheel,
}:
{
  name,
  label, # the name in the manifest
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

  # The packages that the image's python3.X needs to run.
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

  # Debian packages, and the work of their maintainer scripts as explicit steps.
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
      file = ""; # the wheel's builder chooses the name
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
        # Only these packages of the base: other changes there do not rebuild this layer.
        inherit interpreter;
      };
    };

  python = environment name allWheels;

  # Only the wheels that the services of the control node and of every node need.
  few = builtins.filter (wheel: builtins.elem wheel.name lock.system.minimal);

  # The project's own files: directory trees, copied in order, each into a directory of the root.
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

  # Each layer's hash tree, size and hash; rebuilt only with the layer.
  verity = builtins.mapAttrs (
    layer: path:
    tools.run {
      name = "${name}-${layer}-verity";
      script = "verity.py";
      spec.layer = "${path}";
    }
  ) stages;

  # The layers, the lowest first. `python`: the stage with the environment. A layer with `mount` is
  # completely below that directory, and can be mounted there after the others.
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

  # Python's part of the bill of materials; for a wheel that is built here, its source.
  distributions = lock.wheels ++ lock.sources or [ ];

  # An image of the given layers.
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
  # With few Python packages, a sixth of the size: for tests of booting.
  minimal = assemble {
    name = "${label}-minimal";
    wheels = few distributions;
    layers = layered "few";
  };
  prefix = lock.system.environment;
  pythonVersion = lock.python.version;
}
