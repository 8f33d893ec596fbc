// SPDX-License-Identifier: Apache-2.0
// Makes the library a Python module, `fused_inception._C`, with nothing in it: the operators
// register themselves with PyTorch when the library is loaded, and Python needs no binding to reach
// them.
#include <Python.h>

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr};
  return PyModuleDef_Init(&module);
}
