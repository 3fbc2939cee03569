{
  description = "From bare machines to a measured LLM inference cluster: netboot images";

  # No inputs, on purpose: everything is a Debian package or a wheel that a lock names by hash.
  outputs =
    { self }:
    let
      system = "x86_64-linux";
      images = import ./images { inherit system; };
      models = import ./models { inherit images; };
      inherit (import ./images/lib/attrs.nix) flatten nest prefixed;
    in
    {
      # `nix build .#pxe-0.1` is read as the attribute `pxe-0`, then `1`: names are nested at dots.
      legacyPackages.${system} = nest images.byName // {
        models = models.byName;
        inherit (images) tools loaders;
      };

      # The same for `nix flake show`, which takes no dots: `pxe-0_1`.
      packages.${system} = flatten (images.byName // prefixed "model-" models.byName);

      # Needs no fetched file: docs/reference/image.md says what is checked.
      checks.${system} = flatten (
        import ./images/lib/checks.nix {
          inherit (images) locks;
          images = images.byName;
        }
      );
    };
}
