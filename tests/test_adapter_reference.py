"""`fuse` on this package's own Inception V3 and on torchvision's, which it is made after."""

from tests.adapter_properties import AdapterProperties

# They compile and export in the tests of whole networks in test_fuse.py.


class TestReference(AdapterProperties):
    names = ("reference",)
    one = "reference"
    test_compile_and_export = None


class TestTorchvision(AdapterProperties):
    names = ("torchvision",)
    one = "torchvision"
    test_compile_and_export = None
