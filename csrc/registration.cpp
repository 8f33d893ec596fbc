// SPDX-License-Identifier: Apache-2.0
// Makes the library a Python module, `fused_inception._C`, with nothing in it: the operators
// register themselves with PyTorch when the library is loaded, and Python needs no binding to reach
// them.
#include <Python.h>

// Weak, so that the linker can insist that it knows every other symbol, and that a program without
// Python can load the library too.
#pragma weak PyModuleDef_Init

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr};
  return PyModuleDef_Init(&module);
}
