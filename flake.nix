{
  description = "From bare machines to a measured LLM inference cluster: netboot images";

  # No inputs, on purpose: everything is a Debian package or a wheel that a lock names by hash.
  outputs =
    { self }:
    let
      system = "x86_64-linux";
      images = import ./images { inherit system; };
      models = import ./models { inherit images; };
      inherit (import ./images/lib/attrs.nix) nest;
    in
    {
      # `nix build .#pxe-0.1` is read as the attribute `pxe-0`, then `1`: names are nested at dots.
      legacyPackages.${system} = nest images.byName // {
        models = models.byName;
        inherit (images) tools loaders;
      };
    };
}
