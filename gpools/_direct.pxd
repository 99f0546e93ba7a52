from cpython.long cimport PyLong_FromVoidPtr
from cpython.weakref cimport PyWeakref_NewRef


cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil


cdef inline unsigned long current_thread() noexcept:
    return PyThread_get_thread_ident()


cdef inline object weakly(thing):
    return PyWeakref_NewRef(thing, None)


cdef inline object address(thing):
    return PyLong_FromVoidPtr(<void*>thing)
