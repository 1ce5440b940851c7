"""TensorRT with a builder that records its calls and builds nothing."""

from types import ModuleType

from anofpdm.runtime.bundle.bundle import DEFAULT, NETWORK_FP16

LIGHT = DEFAULT / NETWORK_FP16


class Wrapped:
    """An object of TensorRT's with some attributes replaced."""

    def __init__(self, real, **replaced):
        self.__dict__.update(real=real, replaced=replaced)

    def __getattr__(self, name):
        return self.replaced[name] if name in self.replaced else getattr(self.real, name)

    def __setattr__(self, name, value):
        setattr(self.real, name, value)


class Recorder:
    """A module like TensorRT: its parser and its configurations, with another builder.

    ``build``: what becomes of ``build_serialized_network(log)``; ``cache(content)``: whether a
    timing cache of these bytes (can be made, fits).
    """

    def __init__(self, trt, build=lambda log: b"engine", cache=lambda content: (True, True)):
        self.profiles, self.caches, self.config = [], [], None
        self.module = ModuleType("tensorrt")
        self.module.__dict__.update({**trt.__dict__, "__name__": "tensorrt"}, __version__="11.4.0")
        del self.module.ComputeCapability

        def create_timing_cache(content):
            valid, fits = cache(content)
            self.caches.append(content)
            return Wrapped(None, serialize=lambda: content + b"+", fits=fits) if valid else None

        def builder(log):
            real = trt.Builder(log)
            log.log(trt.ILogger.Severity.ERROR, "from the beginning")

            def create_builder_config():
                self.config = real.create_builder_config()
                return Wrapped(
                    self.config,
                    create_timing_cache=create_timing_cache,
                    set_timing_cache=lambda cache, ignore: not ignore and cache.fits,
                )

            def create_optimization_profile():
                self.profiles.append(real.create_optimization_profile())
                return self.profiles[-1]

            def build_serialized_network(network, config):
                return build(log)

            return Wrapped(
                real,
                create_builder_config=create_builder_config,
                create_optimization_profile=create_optimization_profile,
                build_serialized_network=build_serialized_network,
            )

        self.module.Builder = builder
